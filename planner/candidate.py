"""A candidate: decisions for all calls and their price, and the sums it is priced from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec
from msgspec.structs import replace

from ..cost_model.communication.stage_transfer import Crossing, coding_bytes, message_bytes
from ..cost_model.pipeline.closed_form import shares
from ..ir.compression.program import Program
from ..ir.plan.interleave import deal
from ..ir.plan.plan import Memory, Span
from ..ir.plan.strategy import Strategy
from ..ir.plan.workload import Large, Moment, StageBytes


class Decision(msgspec.Struct, frozen=True):
    """What calls `first` to `last - 1` do. Calls that follow from the batch alone remember nothing."""

    first: int
    last: int
    strategy: Strategy
    memory: Memory


class Candidate(msgspec.Struct, frozen=True):
    """Decisions for all calls, in order, where pieces begin and the last ends, `chunks` pieces per
    stage, and what it costs."""

    decisions: tuple[Decision, ...]
    micro_batches: int
    bounds: tuple[int, ...]
    step_seconds: float
    bubble: float
    peak_bytes: int
    chunks: int = 1

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        return tuple(dict.fromkeys(d.strategy for d in self.decisions))

    @property
    def word(self) -> str:
        return " | ".join(map(str, self.strategies))

    @property
    def memory(self) -> str:
        """What layers remember, in a word or two: `keep`, `keep+recompute`."""
        return "+".join(sorted({d.memory for d in self.decisions}))

    def at(self, call: int) -> Decision:
        return next(d for d in self.decisions if d.first <= call < d.last)


def end_shares(
    seconds: Sequence[float], stages: Sequence[Sequence[Span]]
) -> tuple[tuple[float, float], ...]:
    """The parts that the first and the last piece of every stage have of its time."""
    found = (shares([sum(seconds[first:last]) for first, last in own]) for own in stages)
    return tuple((own[0], own[-1]) for own in found)


def pieces(bounds: Sequence[int], chunks: int) -> list[tuple[Span, ...]]:
    """The pieces of every stage."""
    return deal(list(pairwise(bounds)), (len(bounds) - 1) // chunks)


class StageSums(msgspec.Struct, frozen=True):
    """A stage's calls added up, before the batch axes' roles: seconds per micro-batch, bytes per
    device. `trained_bytes`: of those held, what the optimizer changes, `small_bytes` of it in small
    tensors. `summed_bytes` are gradients
    to add up, by the axis inside a replica of the batch; `call_bytes` counts calls by the bytes of
    weights they hold; `last_bytes`: of those saved, the last call's of the model."""

    pieces: tuple[Span, ...]
    forward_seconds: float
    backward_seconds: float
    communication_seconds: float
    once_seconds: float
    held_bytes: int
    trained_bytes: int
    summed_bytes: dict[str, int]
    call_bytes: tuple[tuple[int, int], ...]
    saved_bytes: int
    last_bytes: int
    moments: tuple[Moment, ...]
    once_bytes: int
    batch_bytes: tuple[int, int]
    crossing_bytes: int
    entering_bytes: int
    small_bytes: int = 0
    host_bytes: int = 0
    large: Large = Large()  # of what crosses
    entering_large: Large = Large()
    message_bytes: int = 0
    coding_bytes: int = 0

    def bytes(self, item: int) -> StageBytes:
        """What memory needs of it; `item` bytes per element of a parameter."""
        return StageBytes(
            held=self.held_bytes,
            trained=self.trained_bytes,
            calls=self.call_bytes,
            saved=self.saved_bytes,
            last=self.last_bytes,
            moments=self.moments,
            once=self.once_bytes,
            batch=self.batch_bytes[0],
            inputs=self.batch_bytes[1],
            crossing=self.crossing_bytes,
            entering=self.entering_bytes,
            item=item,
            summed=self.summed_bytes,
            small=self.small_bytes,
            host=self.host_bytes,
            message=self.message_bytes,
            coding=self.coding_bytes,
        )

    @property
    def crossing(self) -> Crossing:
        """What goes to the next stage."""
        return Crossing(self.crossing_bytes, self.large)

    def encoded(self, program: Program | None) -> StageSums:
        """The same with what crosses encoded by a program, if there is one."""
        if program is None or not (self.large.elements or self.entering_large.elements):
            return self
        entering = Crossing(self.entering_bytes, self.entering_large)
        return replace(
            self,
            message_bytes=message_bytes(self.crossing, program),
            coding_bytes=coding_bytes(self.crossing, entering, program),
        )


Part = tuple[Strategy, StageSums]  # the calls of one strategy in one stage


class Cut(msgspec.Struct, frozen=True):
    """A model cut into pieces dealt out to stages: every different stage, and which of them each stage
    is like."""

    bounds: tuple[int, ...]
    kinds: tuple[StageSums, ...]
    kind_of: tuple[int, ...]
    sends: tuple[float, ...]  # seconds from every stage to the next
    ends: tuple[
        tuple[float, float], ...
    ]  # parts of each stage's time: its first and its last piece
    saved: tuple[tuple[float, ...], ...]  # bytes that each piece of a kind saves
