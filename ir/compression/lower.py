"""Stage lists become kernels: the longest runs between breaks, for groups of known sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

from msgspec.structs import replace

from ..errors import UsageError
from .check import check
from .kernel import Choose, Fate, Finish, Kernel, Kind, Operand, Pipeline, State, Step, Transfer
from .program import Program
from .stage import (
    AddState,
    AllGather,
    AllToAll,
    Blend,
    Cast,
    Collective,
    Dequantize,
    Hadamard,
    Pack,
    Quantize,
    Reduce,
    Residual,
    Scale,
    Score,
    Select,
    Send,
    Stage,
    Stages,
    Stat,
    Unpack,
)
from .wire import Wire

LEAST_TILE = 128
KINDS: dict[type[Stage], Kind] = {AllToAll: "all_to_all", AllGather: "all_gather", Send: "send"}
DECODING = (Unpack, Dequantize, Reduce, Score)
LASTING = (Scale, Blend, Hadamard, Select)  # what stays when a hop goes


def lower(program: Program, inner: int = 1, outer: int = 1, total: bool = False) -> Pipeline:
    """The kernels of a program for `outer` nodes of `inner` ranks.

    Hops over a level of one rank vanish. With `total`, means become sums. Raises UsageError for
    illegal programs and for rules that drop more ranks than there are.
    """
    check(program)
    sizes = {"inner": inner, "outer": outer, "all": inner * outer}
    whole = (Scale(float(inner * outer)),) if total and _averages(program.stages) else ()
    stages = simplify(without_lonely_hops((*program.stages, *whole), sizes))
    select = stages[0] if stages and isinstance(stages[0], Select) else None
    name = f"{program.name}_{inner}x{outer}{'_total' if whole else ''}"
    walk = _Walk(name, sizes, stages[1:] if select else stages)
    tile = max(kernel.tile for kernel in walk.steps if isinstance(kernel, Kernel))
    states = tuple(_states(tuple(walk.steps), walk.total, select))
    return Pipeline(program.name, tuple(walk.steps), states, tile, walk.total, select)


def _averages(stages: Stages) -> bool:
    """All rules but plain sums give one of many, or their mean."""
    reduces = [stage for stage in stages if isinstance(stage, Reduce | Score)]
    return any(stage.rule != "sum" for stage in reduces)


def without_lonely_hops(stages: Stages, sizes: dict[str, int]) -> Stages:
    """A collective over one rank goes, with all that encodes, decodes and reduces for it."""
    kept: list[Stage] = []
    hop: list[Stage] = []
    rest = list(stages)
    while rest:
        stage = rest.pop(0)
        hop.append(stage)
        if not isinstance(stage, Collective):
            continue
        hop += _decoding(rest)
        lonely = sizes[stage.level] == 1 and not isinstance(stage, Send)
        kept += _elementwise(hop) if lonely else hop
        hop = []
    return tuple(kept + hop)


def _decoding(rest: list[Stage]) -> list[Stage]:
    """Takes the stages that turn messages into one value off the front."""
    taken: list[Stage] = []
    while rest and isinstance(rest[0], DECODING):
        taken.append(rest.pop(0))
    return taken


def _elementwise(hop: list[Stage]) -> list[Stage]:
    """What a hop does to values besides sending them."""
    left = {stage.state for stage in hop if isinstance(stage, Residual)}
    return [
        stage
        for stage in hop
        if isinstance(stage, LASTING) or (isinstance(stage, AddState) and stage.state not in left)
    ]


def simplify(stages: Stages) -> Stages:
    """Two Hadamards in a row are a multiplication; neighbouring factors are one; ones go."""
    done: list[Stage] = []
    for stage in stages:
        last = done[-1] if done else None
        if isinstance(stage, Hadamard) and last == stage:
            done[-1] = Scale(float(stage.block))
        elif isinstance(stage, Scale) and isinstance(last, Scale):
            done[-1] = Scale(last.factor * stage.factor)
        else:
            done.append(stage)
    return tuple(stage for stage in done if stage != Scale(1.0))


class _Walk:
    """Goes through the stages once; `steps` is what was made of them."""

    def __init__(self, name: str, sizes: dict[str, int], stages: Stages) -> None:
        self.name, self.sizes, self.steps = re.sub(r"\W+", "_", name), sizes, list[Step]()
        hops = [stage for stage in stages if isinstance(stage, AllToAll)]
        self.chunks = self.total = prod(sizes[hop.level] for hop in hops)
        self.swizzle = _swizzle(hops, sizes)
        self.ranks = 1
        self.source: Wire | None = None
        self.run: list[Stage] = []
        for stage in stages:
            if isinstance(stage, Collective):
                self.transfer(stage)
            elif isinstance(stage, Score):
                self.choose(stage)
            else:
                self.run.append(stage)
        self.kernels(None)

    def transfer(self, stage: Collective) -> None:
        size, wire = self.sizes[stage.level], wire_of(self.run)
        self.kernels(wire)
        self.steps.append(Transfer(KINDS[type(stage)], stage.level, size, self.chunks, wire))
        self.source = wire
        if isinstance(stage, AllToAll):
            self.ranks, self.chunks = size, self.chunks // size
        elif isinstance(stage, AllGather):
            self.chunks *= size

    def choose(self, stage: Score) -> None:
        size, self.chunks, self.ranks = self.ranks, self.chunks * self.ranks, 1
        if size - stage.drop < (3 if stage.rule == "krum" else 1):
            raise UsageError(f"{stage.rule} over {size} ranks cannot drop {stage.drop} of them")
        self.kernels(None)
        self.steps.append(Choose(stage, size))
        self.chunks //= size
        self.source = None

    def kernels(self, target: Wire | None) -> None:
        """Closes the run: one kernel, or two around a statistic over everything."""
        role = "decode" if target is None else "reduce" if self.source else "encode"
        made = Kernel(
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
        _enough(made)
        stat = made.whole
        if stat is not None:
            upto = made.body[: made.body.index(stat) + 1]
            name = f"measure{len(self.steps)}_{self.name}"
            first = replace(made, name=name, body=upto, target=None, partial=True)
            self.steps += [replace(first, tile=tile_of(first)), Finish(stat.kind)]
        made = replace(made, tile=tile_of(made))
        self.steps.append(made)
        self.ranks = 1


def _swizzle(hops: list[AllToAll], sizes: dict[str, int]) -> tuple[int, int] | None:
    """Rank j * inner + i ends with that chunk after an exchange inside nodes, then across."""
    if [hop.level for hop in hops] == ["inner", "outer"]:
        return sizes["inner"], sizes["outer"]
    return None


def _enough(kernel: Kernel) -> None:
    for stage in kernel.body:
        if isinstance(stage, Reduce):
            dropped = {"trimmed_mean": 2 * stage.drop, "phocas": 2 * stage.drop}.get(stage.rule, 0)
            if dropped >= kernel.ranks:
                raise UsageError(f"{stage.rule} over {kernel.ranks} ranks cannot drop {stage.drop}")


def wire_of(run: list[Stage]) -> Wire:
    """The messages that a run of stages ends in."""
    for number, stage in enumerate(run):
        if isinstance(stage, Quantize) and any(isinstance(s, Pack) for s in run[number:]):
            stat = run[number - 1]
            assert isinstance(stat, Stat)
            return Wire(stage.bits, stat.group, stage.codes)
    if run and isinstance(run[-1], Cast) and run[-1].element == "bf16":
        return Wire(16, 0, "bf16")
    return Wire(32, 0, "fp32")


def tile_of(kernel: Kernel) -> int:
    """Elements that one iteration holds: groups, blocks and packed words end with it."""
    sizes = [LEAST_TILE]
    sizes += [w.tile for w in (kernel.source, kernel.target) if w is not None]
    sizes += [stage.block for stage in kernel.body if isinstance(stage, Hadamard)]
    sizes += [stage.group for stage in kernel.body if isinstance(stage, Stat)]
    return max(sizes)


def _states(steps: tuple[Step, ...], total: int, select: Select | None) -> Iterator[State]:
    found: dict[str, tuple[Operand, int]] = {}
    for step in steps:
        for operand in step.operands if isinstance(step, Kernel) else ():
            assert isinstance(step, Kernel)
            found[operand.name] = (operand, step.chunks)  # the last kernel is the one that writes
    for operand, chunks in found.values():
        fate = _resharded(operand, chunks, total)
        yield State(operand.name, chunks, operand.element, fate)
    if select and select.remainder:
        yield State(select.remainder, total * select.ratio)


def _resharded(operand: Operand, chunks: int, total: int) -> Fate:
    """Errors of whole buckets differ by rank and start anew; those of shards are cut elsewhere."""
    if not operand.written:
        return "kept"
    return "split" if chunks == 1 < total else "reset"
