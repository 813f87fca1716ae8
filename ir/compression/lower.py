"""Lower compression programs to kernel pipelines: one kernel per run of stages between breaks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

from msgspec.structs import replace

from ..errors import UsageError
from .check import check
from .kernel import (
    CompressionKernel,
    CompressionState,
    FinishStatistic,
    KernelPipeline,
    KernelPipelineStep,
    MessageTransfer,
    Operand,
    ReshardAction,
    ScoreVectors,
    TransferKind,
)
from .message_format import MessageFormat
from .program import CompressionProgram
from .stage import (
    AddState,
    AllGather,
    AllToAll,
    Cast,
    Collective,
    CompressionStage,
    CompressionStages,
    Dequantize,
    Hadamard,
    MovingAverage,
    Pack,
    Quantize,
    Reduce,
    Residual,
    Scale,
    Score,
    Select,
    SendRecv,
    Stat,
    Unpack,
)

MINIMUM_TILE = 128
TRANSFER_KINDS: dict[type[CompressionStage], TransferKind] = {
    AllToAll: "all_to_all",
    AllGather: "all_gather",
    SendRecv: "send",
}
DECODING = (Unpack, Dequantize, Reduce, Score)
PRESERVED = (Scale, MovingAverage, Hadamard, Select)  # kept when a collective is removed


def lower(
    program: CompressionProgram, inner: int = 1, outer: int = 1, total: bool = False
) -> KernelPipeline:
    """Lower `program` for `outer` nodes of `inner` ranks.

    Collectives over a level of one rank are removed. With `total`, means become sums. Raises
    UsageError for illegal programs and for rules that drop more ranks than there are.
    """
    check(program)
    sizes = {"inner": inner, "outer": outer, "all": inner * outer}
    to_sum = (Scale(float(inner * outer)),) if total and _averages(program.stages) else ()
    stages = simplify(without_single_rank_collectives((*program.stages, *to_sum), sizes))
    select = stages[0] if stages and isinstance(stages[0], Select) else None
    name = f"{program.name}_{inner}x{outer}{'_total' if to_sum else ''}"
    lowering = _Lowering(name, sizes, stages[1:] if select else stages)
    tile = max(kernel.tile for kernel in lowering.steps if isinstance(kernel, CompressionKernel))
    states = tuple(_states(tuple(lowering.steps), lowering.total, select))
    return KernelPipeline(program.name, tuple(lowering.steps), states, tile, lowering.total, select)


def _averages(stages: CompressionStages) -> bool:
    """Whether the result is a mean or one representative vector, rather than a sum."""
    reduces = [stage for stage in stages if isinstance(stage, Reduce | Score)]
    return any(stage.rule != "sum" for stage in reduces)


def without_single_rank_collectives(
    stages: CompressionStages, sizes: dict[str, int]
) -> CompressionStages:
    """Remove collectives over one rank, with the stages that encode, decode and reduce for them."""
    remaining: list[CompressionStage] = []
    segment: list[CompressionStage] = []
    rest = list(stages)
    while rest:
        stage = rest.pop(0)
        segment.append(stage)
        if not isinstance(stage, Collective):
            continue
        segment += _pop_decoding(rest)
        single_rank = sizes[stage.level] == 1 and not isinstance(stage, SendRecv)
        remaining += _elementwise(segment) if single_rank else segment
        segment = []
    return tuple(remaining + segment)


def _pop_decoding(rest: list[CompressionStage]) -> list[CompressionStage]:
    """Remove from the front of `rest` the stages that decode and reduce messages."""
    decoding: list[CompressionStage] = []
    while rest and isinstance(rest[0], DECODING):
        decoding.append(rest.pop(0))
    return decoding


def _elementwise(segment: list[CompressionStage]) -> list[CompressionStage]:
    """Return the stages of a segment that change values other than by quantisation."""
    residuals = {stage.state for stage in segment if isinstance(stage, Residual)}
    return [
        stage
        for stage in segment
        if isinstance(stage, PRESERVED)
        or (isinstance(stage, AddState) and stage.state not in residuals)
    ]


def simplify(stages: CompressionStages) -> CompressionStages:
    """Fold adjacent equal Hadamards into a Scale, merge adjacent Scales, drop Scale(1)."""
    folded: list[CompressionStage] = []
    for stage in stages:
        last = folded[-1] if folded else None
        if isinstance(stage, Hadamard) and last == stage:
            folded[-1] = Scale(float(stage.block))
        elif isinstance(stage, Scale) and isinstance(last, Scale):
            folded[-1] = Scale(last.factor * stage.factor)
        else:
            folded.append(stage)
    return tuple(stage for stage in folded if stage != Scale(1.0))


class _Lowering:
    """Turns stages, in order, into `steps`."""

    def __init__(self, name: str, sizes: dict[str, int], stages: CompressionStages) -> None:
        self.name, self.sizes, self.steps = (
            re.sub(r"\W+", "_", name),
            sizes,
            list[KernelPipelineStep](),
        )
        exchanges = [stage for stage in stages if isinstance(stage, AllToAll)]
        self.chunks = self.total = prod(sizes[exchange.level] for exchange in exchanges)
        self.swizzle = _swizzle(exchanges, sizes)
        self.ranks = 1
        self.source: MessageFormat | None = None
        self.run: list[CompressionStage] = []
        for stage in stages:
            if isinstance(stage, Collective):
                self.transfer(stage)
            elif isinstance(stage, Score):
                self.score(stage)
            else:
                self.run.append(stage)
        self.kernels(None)

    def transfer(self, stage: Collective) -> None:
        size, message_format = self.sizes[stage.level], message_format_of(self.run)
        self.kernels(message_format)
        self.steps.append(
            MessageTransfer(
                TRANSFER_KINDS[type(stage)], stage.level, size, self.chunks, message_format
            )
        )
        self.source = message_format
        if isinstance(stage, AllToAll):
            self.ranks, self.chunks = size, self.chunks // size
        elif isinstance(stage, AllGather):
            self.chunks *= size

    def score(self, stage: Score) -> None:
        size, self.chunks, self.ranks = self.ranks, self.chunks * self.ranks, 1
        if size - stage.drop < (3 if stage.rule == "krum" else 1):
            raise UsageError(f"{stage.rule} over {size} ranks cannot drop {stage.drop} of them")
        self.kernels(None)
        self.steps.append(ScoreVectors(stage, size))
        self.chunks //= size
        self.source = None

    def kernels(self, target: MessageFormat | None) -> None:
        """End the current run: one kernel, or two around a per-tensor statistic."""
        role = "decode" if target is None else "reduce" if self.source else "encode"
        kernel = CompressionKernel(
            f"{role}{len(self.steps)}_{self.name}",
            tuple(self.run),
            0,
            self.chunks,
            self.ranks,
            self.source,
            target,
            swizzle=self.swizzle,
        )
        self.run, self.swizzle = [], None
        _check_dropped_ranks(kernel)
        stat = kernel.per_tensor_stat
        if stat is not None:
            body = kernel.body[: kernel.body.index(stat) + 1]
            name = f"measure{len(self.steps)}_{self.name}"
            measure = replace(kernel, name=name, body=body, target=None, partial=True)
            self.steps += [replace(measure, tile=tile_of(measure)), FinishStatistic(stat.kind)]
        self.steps.append(replace(kernel, tile=tile_of(kernel)))
        self.ranks = 1


def _swizzle(exchanges: list[AllToAll], sizes: dict[str, int]) -> tuple[int, int] | None:
    """Chunk order (inner, outer) of an exchange inside nodes, then across: rank j * inner + i
    ends with chunk j * inner + i."""
    if [exchange.level for exchange in exchanges] == ["inner", "outer"]:
        return sizes["inner"], sizes["outer"]
    return None


def _check_dropped_ranks(kernel: CompressionKernel) -> None:
    for stage in kernel.body:
        if isinstance(stage, Reduce):
            dropped = {"trimmed_mean": 2 * stage.drop, "phocas": 2 * stage.drop}.get(stage.rule, 0)
            if dropped >= kernel.ranks:
                raise UsageError(f"{stage.rule} over {kernel.ranks} ranks cannot drop {stage.drop}")


def message_format_of(run: list[CompressionStage]) -> MessageFormat:
    """The format of the messages that a run of stages writes."""
    for number, stage in enumerate(run):
        if isinstance(stage, Quantize) and any(isinstance(s, Pack) for s in run[number:]):
            stat = run[number - 1]
            assert isinstance(stat, Stat)
            return MessageFormat(stage.bits, stat.group, stage.codes)
    if run and isinstance(run[-1], Cast) and run[-1].element == "bf16":
        return MessageFormat(16, 0, "bf16")
    return MessageFormat(32, 0, "fp32")


def tile_of(kernel: CompressionKernel) -> int:
    """Elements per tile: a multiple of every group, block and packed word span."""
    sizes = [MINIMUM_TILE]
    sizes += [w.tile for w in (kernel.source, kernel.target) if w is not None]
    sizes += [stage.block for stage in kernel.body if isinstance(stage, Hadamard)]
    sizes += [stage.group for stage in kernel.body if isinstance(stage, Stat)]
    return max(sizes)


def _states(
    steps: tuple[KernelPipelineStep, ...], total: int, select: Select | None
) -> Iterator[CompressionState]:
    operands: dict[str, tuple[Operand, int]] = {}
    for step in steps:
        for operand in step.operands if isinstance(step, CompressionKernel) else ():
            assert isinstance(step, CompressionKernel)
            operands[operand.name] = (
                operand,
                step.chunks,
            )  # the last kernel is the one that writes
    for operand, chunks in operands.values():
        action = _reshard_action(operand, chunks, total)
        yield CompressionState(operand.name, chunks, operand.element, action)
    if select and select.remainder:
        yield CompressionState(select.remainder, total * select.ratio)


def _reshard_action(operand: Operand, chunks: int, total: int) -> ReshardAction:
    """Residuals of full buckets differ by rank and are reset; those of shards are split anew."""
    if not operand.written:
        return "kept"
    return "split" if chunks == 1 < total else "reset"
