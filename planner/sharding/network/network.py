"""A network of choices: prices of their own, and prices between them.

A choice is one operator or one value at the boundary; its labels are what it may do over all axes at
once. A flow is one value in one phase: its maker's label says where the value lies, its users'
labels say where they want it, and every distinct layout wanted is paid for once.
"""

from __future__ import annotations

import msgspec

from .labels import Ints
from .moves import Floats


class End(msgspec.Struct, frozen=True):
    """One choice's end of a flow: for every label of the choice a row or column of its table."""

    choice: int
    place: Ints


class Flow(msgspec.Struct, frozen=True):
    """`seconds[have, want]` of every copy; several users that want the same pay once."""

    seconds: Floats
    maker: End
    users: tuple[End, ...]

    @property
    def ends(self) -> tuple[End, ...]:
        return (self.maker, *self.users)


class Network(msgspec.Struct, frozen=True):
    """Per choice the seconds and the bytes of its labels; flows between choices.

    `parts[choice]` [labels, axes] numbers what a label does on every mesh axis. `memory_bytes`
    limits the sum of all bytes; the bytes are zero where it is infinite.
    """

    seconds: tuple[Floats, ...]
    bytes: tuple[Floats, ...]
    parts: tuple[Ints, ...]
    flows: tuple[Flow, ...]
    memory_bytes: float

    def value(self, labels: list[int]) -> float:
        """Seconds of one label per choice."""
        total = sum(float(s[label]) for s, label in zip(self.seconds, labels, strict=True))
        for flow in self.flows:
            have = flow.maker.place[labels[flow.maker.choice]]
            for want in sorted({int(u.place[labels[u.choice]]) for u in flow.users}):
                total += float(flow.seconds[have, want])
        return total

    def taken(self, labels: list[int]) -> float:
        """Bytes of one label per choice."""
        return sum(float(b[label]) for b, label in zip(self.bytes, labels, strict=True))


class Answer(msgspec.Struct, frozen=True):
    """One label per choice, or None where there is none; no assignment costs less than `bound`."""

    labels: list[int] | None
    objective: float
    bound: float
