"""Actions of every rank in order: run units, send and receive tensors.

All ranks follow one global order of units and transfers. A transfer comes right after the unit that
computes the tensor, on the sending and on the receiving rank:

    order      a on 0,  a to 1,  b on 1,  b to 0,  c on 0
    rank 0     a        send a            receive b  c
    rank 1              receive a  b      send b

So waits cannot form a cycle: the first unfinished action in this order has all its inputs, and its
ranks have nothing else to do before it. This holds even for synchronous sends. Two ranks send and
receive their tensors in the same order.
"""

from __future__ import annotations

import msgspec

from .assignment import PlacedStep


class RunUnit(msgspec.Struct, frozen=True):
    """Run unit number `unit`."""

    unit: int


class SendTensor(msgspec.Struct, frozen=True):
    """Send tensor `value` to rank `target`."""

    value: int
    target: int


class ReceiveTensor(msgspec.Struct, frozen=True):
    """Begin to receive tensor `value` from rank `source`."""

    value: int
    source: int


Action = RunUnit | SendTensor | ReceiveTensor


def rank_actions(assignment: PlacedStep) -> tuple[tuple[Action, ...], ...]:
    """Actions per rank. A tensor is sent once to each rank that reads it, in the order of first
    reads."""
    producers = assignment.makers()
    targets: dict[int, list[int]] = {value: [] for value in producers}
    for number in assignment.order:
        for value in assignment.units[number].reads:
            here = assignment.device[number]
            if here != assignment.device[producers[value]] and here not in targets[value]:
                targets[value].append(here)
    tensors: dict[int, list[int]] = {}
    for value, producer in producers.items():
        tensors.setdefault(producer, []).append(value)
    by_rank: list[list[Action]] = [[] for _ in range(assignment.ranks)]
    for number in assignment.order:
        here = assignment.device[number]
        by_rank[here].append(RunUnit(number))
        for value in tensors.get(number, ()):
            for target in targets[value]:
                by_rank[here].append(SendTensor(value, target))
                by_rank[target].append(ReceiveTensor(value, here))
    return tuple(map(tuple, by_rank))
