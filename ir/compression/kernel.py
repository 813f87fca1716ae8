"""A program ready to print and to run: kernels, the collectives between them, states.

Every kernel walks `chunks` pieces of equal length. Chunk k of its result comes from chunk k of a flat
tensor, or from messages `k`, `chunks + k`, `2 * chunks + k` … of `ranks` ranks:

    flat  |chunk 0|chunk 1|…      messages |rank 0: 0 1 …|rank 1: 0 1 …|…
             │ body                             │ unpack, reduce, body
          |message 0|message 1|…  or flat  |chunk 0|chunk 1|…  or one partial result per tile
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from .stage import (
    AddRef,
    AddState,
    Blend,
    Element,
    Level,
    Reduce,
    Residual,
    Score,
    Select,
    Stages,
    Stat,
    Statistic,
    SubRef,
)
from .wire import Wire

PER_INSTANCE = 2048  # elements of a program instance on a GPU, at least one tile
Kind = Literal["all_to_all", "all_gather", "send"]
Fate = Literal["reset", "split", "kept"]


class Operand(Struct, frozen=True):
    """A state tensor that a kernel reads or writes, laid out like its flat side."""

    name: str
    element: Element = "fp32"
    written: bool = False


class Kernel(Struct, frozen=True):
    """One pass over memory. Reads messages when it has a `source`, else a flat fp32 tensor.

    Writes messages when it has a `target`, a partial statistic per `tile` when `partial`, else flat
    fp32. `swizzle` (inner, outer): result chunk i * outer + j comes from flat chunk j * inner + i.
    A `Stat` of WHOLE in the body takes its number as an argument, except in a partial kernel, which
    ends with it.
    """

    name: str
    body: Stages
    tile: int
    chunks: int
    ranks: int = 1
    source: Wire | None = None
    target: Wire | None = None
    partial: bool = False
    swizzle: tuple[int, int] | None = None

    @property
    def operands(self) -> tuple[Operand, ...]:
        """States in the order in which they are first used."""
        found: dict[str, Operand] = {}
        for stage in self.body:
            if isinstance(stage, AddState | Blend | SubRef | AddRef | Residual):
                element: Element = getattr(stage, "element", "fp32")
                written = isinstance(stage, Residual)
                before = found.get(stage.state)
                written = written or (before is not None and before.written)
                found[stage.state] = Operand(stage.state, element, written)
        return tuple(found.values())

    @property
    def tiles(self) -> int:
        """Tiles that one program instance on a GPU works on: rules that look at all ranks at once
        hold all of their values."""
        robust = any(isinstance(s, Reduce) and s.rule not in ("sum", "mean") for s in self.body)
        return max(1, (PER_INSTANCE // 4 if robust else PER_INSTANCE) // self.tile)

    @property
    def warps(self) -> int:
        """Warps of a program instance on a GPU: with two, a thread reads 16 bytes of a message of four
        bits; noise and errors take registers that only four have."""
        narrow = self.source is not None and self.source.bits == 4
        crowded = self.stochastic or any(operand.written for operand in self.operands)
        return 2 if narrow and not crowded else 4

    @property
    def launch_options(self) -> dict[str, int | bool]:
        """What Triton compiles and launches it with: products and sums that follow each other stay two
        roundings, as everywhere else."""
        return {"num_warps": self.warps, "enable_fp_fusion": False}

    @property
    def stochastic(self) -> bool:
        """Needs a seed and a step."""
        return any(getattr(stage, "rounding", "") == "stochastic" for stage in self.body)

    @property
    def whole(self) -> Stat | None:
        """The statistic over everything that it ends with or takes as an argument."""
        return next((s for s in self.body if isinstance(s, Stat) and not s.group), None)


class Transfer(Struct, frozen=True):
    """Messages travel: `count` of them leave this rank's kernel, `size` ranks take part."""

    kind: Kind
    level: Level
    size: int
    count: int
    wire: Wire

    def sent_bytes(self, elements: int) -> int:
        """What one rank puts on the wire, with messages of `elements`."""
        message = self.count * self.wire.bytes(elements)
        if self.kind == "all_to_all":
            return message * (self.size - 1) // self.size
        return message * (self.size - 1) if self.kind == "all_gather" else message


class Finish(Struct, frozen=True):
    """Partial statistics become one number, on the host."""

    kind: Statistic


class Choose(Struct, frozen=True):
    """`Score` on the host: `size` decoded vectors become one."""

    score: Score
    size: int

    @property
    def sent_bytes(self) -> int:
        """An all-reduce of the fp64 distances between all vectors."""
        pairs = self.size**2 if self.score.rule == "krum" else 0
        return 2 * 8 * pairs * (self.size - 1) // self.size


class State(Struct, frozen=True):
    """A tensor that lives between steps, of `chunks` pieces as long as a message.

    `resharded` says what becomes of it when the number of ranks changes.
    """

    name: str
    chunks: int
    element: Element = "fp32"
    resharded: Fate = "reset"


Step = Kernel | Transfer | Finish | Choose


class Pipeline(Struct, frozen=True):
    """A program for groups of given sizes. A bucket has `chunks` times a multiple of `tile` elements."""

    name: str
    steps: tuple[Step, ...]
    states: tuple[State, ...]
    tile: int
    chunks: int
    select: Select | None = None

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        return tuple(step for step in self.steps if isinstance(step, Kernel))

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        return tuple(step for step in self.steps if isinstance(step, Transfer))

    def chunk(self, elements: int) -> int:
        """Elements per message of a bucket of `elements`, padded."""
        ratio = self.select.ratio if self.select else 1
        unit = self.chunks * ratio
        pieces = -(-elements // unit)
        return -(-pieces // self.tile) * self.tile

    def padded(self, elements: int) -> int:
        """The bucket's length after padding with zeros."""
        return self.chunk(elements) * self.chunks * (self.select.ratio if self.select else 1)

    def sent_bytes(self, elements: int) -> int:
        """What one rank puts on the wire for a bucket of `elements`."""
        chunk = self.chunk(elements)
        scores = sum(step.sent_bytes for step in self.steps if isinstance(step, Choose))
        return scores + sum(transfer.sent_bytes(chunk) for transfer in self.transfers)
