"""What every rank does, in order: it runs units, sends tensors, and receives them.

All ranks follow one order of units and transfers. A transfer comes right after the unit that makes
the tensor, in the list of the rank that sends as in that of the rank that receives:

    order      a on 0,  a to 1,  b on 1,  b to 0,  c on 0
    rank 0     a        send a            receive b  c
    rank 1              receive a  b      send b

So no wait can be circular: of all that is not done yet, the first in this order has everything that
it needs, and both its ends have nothing else to do before it. This holds even if a send were to
wait for its receiver. What goes from one rank to another is sent and received in the same order.
"""

from __future__ import annotations

import msgspec

from .assignment import Assignment


class Run(msgspec.Struct, frozen=True):
    """Do unit number `unit`."""

    unit: int


class Send(msgspec.Struct, frozen=True):
    """Send tensor `value` to rank `target`."""

    value: int
    target: int


class Receive(msgspec.Struct, frozen=True):
    """Begin to receive tensor `value` from rank `source`."""

    value: int
    source: int


Action = Run | Send | Receive


def actions(made: Assignment) -> tuple[tuple[Action, ...], ...]:
    """Per rank. A tensor is sent once to each rank that reads it, first to who reads it first."""
    makers = made.makers()
    targets: dict[int, list[int]] = {value: [] for value in makers}
    for number in made.order:
        for value in made.units[number].reads:
            here = made.device[number]
            if here != made.device[makers[value]] and here not in targets[value]:
                targets[value].append(here)
    tensors: dict[int, list[int]] = {}
    for value, maker in makers.items():
        tensors.setdefault(maker, []).append(value)
    found: list[list[Action]] = [[] for _ in range(made.ranks)]
    for number in made.order:
        here = made.device[number]
        found[here].append(Run(number))
        for value in tensors.get(number, ()):
            for target in targets[value]:
                found[here].append(Send(value, target))
                found[target].append(Receive(value, here))
    return tuple(map(tuple, found))
