"""Operators of equal structure in the order in which their results are used.

Code that walks a set runs its turns in another order in every process. Where the turns are alike (rotary
angles of several kinds of layers) the trace, and so its fingerprint, would differ with them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from ...model.model import Argument, Op, Ref
from ..graph import FlatGraph


def in_order_of_use(ops: list[Op], users: Sequence[Op], graph: FlatGraph) -> list[Op]:
    """The same operators, those of equal structure as `users` need them first; as they are where they
    draw numbers, whose order counts."""
    if any(graph.key in op.operands() for op in ops):
        return ops
    ranks = _ranks(ops, users)
    slots = defaultdict[Hashable, list[int]](list)
    for place, structure in enumerate(_structures(ops, graph)):
        slots[structure].append(place)
    ordered = list(ops)
    for places in slots.values():
        by_use = sorted(places, key=lambda place: ranks[place])
        for place, source in zip(places, by_use, strict=True):
            ordered[place] = ops[source]
    return ordered if _defined_in_order(ordered) else ops


def _structures(ops: list[Op], graph: FlatGraph) -> list[Hashable]:
    """What every operator computes, apart from the names of parameters and buffers."""
    known = dict[int, Hashable]()

    def leaf(value: int) -> Hashable:
        if value in known:
            return known[value]
        item = graph.parameters.get(value)
        named = ("value", value) if item is None or item.kind == "constant" else item.kind
        return named, graph.types[value]

    def described(argument: Argument) -> Hashable:
        if isinstance(argument, Ref):
            return leaf(argument.value)
        if isinstance(argument, tuple):
            return tuple(described(part) for part in argument)
        return type(argument).__name__, argument

    numbers = dict[Hashable, int]()
    structures = list[Hashable]()
    for op in ops:
        args = tuple(described(a) for a in op.args)
        more = tuple((k, described(a)) for k, a in sorted(op.kwargs.items()))
        structure = numbers.setdefault((op.target, args, more), len(numbers))
        structures.append(structure)
        known.update((r, (structure, n)) for n, r in enumerate(op.results) if r >= 0)
    return structures


def _ranks(ops: list[Op], users: Sequence[Op]) -> list[int]:
    """When the result of every operator is needed first; those that nobody needs come last."""
    makers = {r: place for place, op in enumerate(ops) for r in op.results if r >= 0}
    ranks = dict[int, int]()
    for user in users:
        waiting = [makers[v] for v in user.operands() if v in makers]
        while waiting:
            place = waiting.pop()
            if place not in ranks:
                ranks[place] = len(ranks)
                waiting += [makers[v] for v in ops[place].operands() if v in makers]
    return [ranks.get(place, len(ops) + place) for place in range(len(ops))]


def _defined_in_order(ops: list[Op]) -> bool:
    """Whether every operator comes behind those that it reads."""
    later = {r for op in ops for r in op.results if r >= 0}
    for op in ops:
        if not later.isdisjoint(op.operands()):
            return False
        later.difference_update(op.results)
    return True
