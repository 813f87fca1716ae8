"""Kernel pipelines, the lowered form of compression programs: kernels, collectives, states.

A kernel processes `chunks` chunks of equal length. Chunk k of its result comes from chunk k of a
flat tensor, or from messages `k`, `chunks + k`, `2 * chunks + k` … of `ranks` ranks:

    flat  |chunk 0|chunk 1|…      messages |rank 0: 0 1 …|rank 1: 0 1 …|…
             │ body                             │ unpack, reduce, body
          |message 0|message 1|…  or flat  |chunk 0|chunk 1|…  or one partial result per tile
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .message_format import MessageFormat
from .stage import (
    AddRef,
    AddState,
    CompressionStages,
    Element,
    Level,
    MovingAverage,
    Reduce,
    Residual,
    Score,
    Select,
    Stat,
    Statistic,
    SubRef,
)

INSTANCE_ELEMENTS = 2048  # per Triton program instance, at least one tile
TransferKind = Literal["all_to_all", "all_gather", "send"]
ReshardAction = Literal["reset", "split", "kept"]


class Operand(Struct, frozen=True):
    """A state tensor that a kernel reads or writes, laid out like its flat tensor."""

    name: str
    element: Element = "fp32"
    written: bool = False


class CompressionKernel(Struct, frozen=True):
    """One pass over memory. Reads messages when it has a `source`, else a flat fp32 tensor.

    Writes messages when it has a `target`, a partial statistic per `tile` when `partial`, else flat
    fp32. `swizzle` (inner, outer): result chunk i * outer + j comes from flat chunk j * inner + i.
    A `Stat` of PER_TENSOR in the body is a kernel argument, except in a partial kernel, which ends
    with it.
    """

    name: str
    body: CompressionStages
    tile: int
    chunks: int
    ranks: int = 1
    source: MessageFormat | None = None
    target: MessageFormat | None = None
    partial: bool = False
    swizzle: tuple[int, int] | None = None

    @property
    def operands(self) -> tuple[Operand, ...]:
        """State tensors in order of first use."""
        operands: dict[str, Operand] = {}
        for stage in self.body:
            if isinstance(stage, AddState | MovingAverage | SubRef | AddRef | Residual):
                element: Element = getattr(stage, "element", "fp32")
                written = isinstance(stage, Residual)
                previous = operands.get(stage.state)
                written = written or (previous is not None and previous.written)
                operands[stage.state] = Operand(stage.state, element, written)
        return tuple(operands.values())

    @property
    def tiles(self) -> int:
        """Tiles per Triton program instance; fewer for robust rules, which load the values of all
        ranks at once."""
        robust = any(isinstance(s, Reduce) and s.rule not in ("sum", "mean") for s in self.body)
        return max(1, (INSTANCE_ELEMENTS // 4 if robust else INSTANCE_ELEMENTS) // self.tile)

    @property
    def warps(self) -> int:
        """Warps per Triton program instance: two let a thread read 16 bytes of a 4-bit message;
        random noise and residuals need the registers of four."""
        four_bits = self.source is not None and self.source.bits == 4
        register_bound = self.stochastic or any(operand.written for operand in self.operands)
        return 2 if four_bits and not register_bound else 4

    @property
    def launch_options(self) -> dict[str, int | bool]:
        """Triton options. Without fused multiply-add every backend rounds alike."""
        return {"num_warps": self.warps, "enable_fp_fusion": False}

    @property
    def stochastic(self) -> bool:
        """Whether the kernel takes a seed and a step."""
        return any(getattr(stage, "rounding", "") == "stochastic" for stage in self.body)

    @property
    def per_tensor_stat(self) -> Stat | None:
        """The per-tensor statistic that the kernel computes (partial) or takes as an argument."""
        return next((s for s in self.body if isinstance(s, Stat) and not s.group), None)


class MessageTransfer(Struct, frozen=True):
    """A collective over `size` ranks; every rank passes it `count` messages."""

    kind: TransferKind
    level: Level
    size: int
    count: int
    message_format: MessageFormat

    def sent_bytes(self, elements: int) -> int:
        """Bytes that one rank sends, for messages of `elements`."""
        message = self.count * self.message_format.bytes(elements)
        if self.kind == "all_to_all":
            return message * (self.size - 1) // self.size
        return message * (self.size - 1) if self.kind == "all_gather" else message


class FinishStatistic(Struct, frozen=True):
    """Combine the partial statistics of all tiles into one number, on the host."""

    kind: Statistic


class ScoreVectors(Struct, frozen=True):
    """Evaluate `Score` on the host: `size` decoded vectors become one."""

    score: Score
    size: int

    @property
    def sent_bytes(self) -> int:
        """Bytes of the all-reduce of fp64 pairwise distances (krum only)."""
        pairs = self.size**2 if self.score.rule == "krum" else 0
        return 2 * 8 * pairs * (self.size - 1) // self.size


class CompressionState(Struct, frozen=True):
    """A tensor kept between steps, of `chunks` chunks as long as a message.

    `on_reshard` says what happens to it when the number of ranks changes.
    """

    name: str
    chunks: int
    element: Element = "fp32"
    on_reshard: ReshardAction = "reset"


KernelPipelineStep = CompressionKernel | MessageTransfer | FinishStatistic | ScoreVectors


class KernelPipeline(Struct, frozen=True):
    """A program lowered for given group sizes. A bucket has `chunks` times a multiple of `tile`
    elements."""

    name: str
    steps: tuple[KernelPipelineStep, ...]
    states: tuple[CompressionState, ...]
    tile: int
    chunks: int
    select: Select | None = None

    @property
    def kernels(self) -> tuple[CompressionKernel, ...]:
        return tuple(step for step in self.steps if isinstance(step, CompressionKernel))

    @property
    def transfers(self) -> tuple[MessageTransfer, ...]:
        return tuple(step for step in self.steps if isinstance(step, MessageTransfer))

    def chunk(self, elements: int) -> int:
        """Elements per message, padded to `tile`, for a bucket of `elements`."""
        ratio = self.select.ratio if self.select else 1
        messages = self.chunks * ratio
        per_message = -(-elements // messages)
        return -(-per_message // self.tile) * self.tile

    def padded(self, elements: int) -> int:
        """Elements of the bucket after zero padding."""
        return self.chunk(elements) * self.chunks * (self.select.ratio if self.select else 1)

    def sent_bytes(self, elements: int) -> int:
        """Bytes that one rank sends for a bucket of `elements`."""
        chunk = self.chunk(elements)
        scores = sum(step.sent_bytes for step in self.steps if isinstance(step, ScoreVectors))
        return scores + sum(transfer.sent_bytes(chunk) for transfer in self.transfers)
