"""Values of data-parallel exchanges: the axes they go along, what is sent, what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from .collective import CommGroup

CompressionSubject = Literal["gradients", "weights"]


class GroupAxis(NamedTuple):
    """A batch axis: its role in the strategy, and its groups of ranks."""

    role: str
    size: int
    stride: int

    @property
    def group(self) -> CommGroup:
        return CommGroup(self.size, self.stride)


class Exchange(NamedTuple):
    """A collective of `amount` bytes along one axis after the other. `subject`: what is sent, where
    a compression program may replace it; None: always sent as it is. `messages`: it is sent in as many
    equal parts."""

    subject: CompressionSubject | None
    kind: str
    amount: float
    axes: Sequence[GroupAxis]
    messages: int = 1


class ExchangeEnds(NamedTuple):
    """Seconds of exchanges that run beside nothing: gathers in forward, gathers and
    scatters in backward, once per step sums of gradients and gathers of updated weights."""

    gather: float
    scatter: float
    reduce: float
    update_gather: float


class ExchangeSeconds(NamedTuple):
    """Seconds of a stage's exchanges: `gather` before every call of a micro-batch, `gather_again` before
    its backward, `scatter` after that, `reduce` and `update_gather` once per step."""

    gather: float
    gather_again: float
    scatter: float
    reduce: float
    update_gather: float
    ends: ExchangeEnds


class CallBuffers(NamedTuple):
    """Peak bytes of a call: inside it, of gathered weights and flat copies to send, and of
    gradients added up over micro-batches."""

    inside: int
    beside: int
    accumulation: int
