"""A candidate: decisions for all calls and their price, and the sums it is priced from."""

from __future__ import annotations

import msgspec

from ..ir.amounts import Moment, StageBytes
from ..ir.plan import Memory
from ..ir.strategy import Strategy


class Decision(msgspec.Struct, frozen=True):
    """What calls `first` to `last - 1` do. Calls that follow from the batch alone remember nothing."""

    first: int
    last: int
    strategy: Strategy
    memory: Memory


class Candidate(msgspec.Struct, frozen=True):
    """Decisions for all calls, in order, where stages begin and the last ends, and what it costs."""

    decisions: tuple[Decision, ...]
    micro_batches: int
    bounds: tuple[int, ...]
    step_seconds: float
    bubble: float
    peak_bytes: int

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


class StageSums(msgspec.Struct, frozen=True):
    """A stage's calls added up, before the batch axes' roles: seconds per micro-batch, bytes per
    device. `trained_bytes`: of those held, what the optimizer changes, `small_bytes` of it in small
    tensors. `summed_bytes` are gradients
    to add up, by the axis inside a replica of the batch; `call_bytes` counts calls by the bytes of
    weights they hold; `last_bytes`: of those saved, the last call's of the model."""

    first: int
    last: int
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
        )


Part = tuple[Strategy, StageSums]  # the calls of one strategy in one stage


class Cut(msgspec.Struct, frozen=True):
    """A model cut into stages: every different one, and which of them each stage is like."""

    bounds: tuple[int, ...]
    kinds: tuple[StageSums, ...]
    kind_of: tuple[int, ...]
