"""What waits while each call of a stage runs: the moments among which its peak is.

forward     ▁▂▃▄▅▆   values wait for backward, or for the calls that read them
backward    ▆▅▄▃▂▁   they go as they are read; gradients of weights stay
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import accumulate
from operator import ge

from msgspec.structs import astuple

from ...cost_model.operators.function_cost import FunctionCost
from ...ir.model import Call
from ...ir.plan.workload import Moment, Phase


class _Value:
    """A value between calls: its bytes and its gradient's, and the places of the calls that make it
    (-1: the stage before), read it last, give it a gradient first, and save it first, if any does."""

    __slots__ = ("born", "bytes", "gradient", "last", "pulled", "saver")

    def __init__(self, size: int, born: int, never: int) -> None:
        self.bytes, self.born, self.gradient = size, born, 0
        self.last, self.pulled, self.saver = born, born, never


def moments(
    calls: Sequence[Call],
    costs: Sequence[FunctionCost],
    trained: Sequence[int],
    early: Set[str],
    hide: bool,
) -> tuple[Moment, ...]:
    """Forward and backward of every call of a stage, in order; where many equal calls follow one
    another bytes grow evenly, and the ends say all. `trained`: bytes of weights of every call that get
    gradients; `early` values wait with the batch; copies to host memory `hide` behind other calls."""
    number = len(calls)
    saved, read, pulled = ([0] * (number + 1) for _ in range(3))
    for value in _values(calls, costs, early):
        _add(saved, value.saver, number, value.bytes)
        last = (
            number - 1 if value.born < 0 else value.last
        )  # the stage before's are held to the end
        _add(read, value.born + 1, min(last + 1, value.saver), value.bytes)
        _add(pulled, max(value.born, 0), value.pulled, value.gradient)
    for at, cost in enumerate(costs):
        saved[at] += cost.saved_bytes
    saved, read, pulled = (list(accumulate(line)) for line in (saved, read, pulled))
    summed = list(accumulate(reversed(trained), initial=0))[::-1]
    return _undominated(
        moment
        for at in _ends(costs)
        for moment in _of(
            costs[at],
            trained[at],
            summed[at + 1],
            saved[at],
            read[at],
            pulled[at],
            saved[at - 1] if at else 0,
            _on_their_way(costs, at) if hide else (0, 0),
        )
    )


def _on_their_way(costs: Sequence[FunctionCost], at: int) -> tuple[int, int]:
    """Bytes of other calls that go to host memory while one runs forward, and that come back while it
    runs backward: those of the call before, and, beside the last call, of that itself."""
    before = costs[at - 1].host_bytes
    leaving = costs[at].host_bytes if at + 1 == len(costs) else 0
    return before, leaving + (before if at else 0)


def _undominated(found: Iterable[Moment]) -> tuple[Moment, ...]:
    """Moments of which no other of their phase has as much of everything."""
    kept: dict[Phase, dict[tuple[int, ...], Moment]] = {}
    for moment in sorted(found, key=astuple, reverse=True):
        own, amounts = kept.setdefault(moment.phase, {}), astuple(moment)[1:]
        if not any(all(map(ge, more, amounts)) for more in own):
            own[amounts] = moment
    return tuple(moment for own in kept.values() for moment in own.values())


def _of(
    cost: FunctionCost,
    trained: int,
    summed: int,
    saved: int,
    read: int,
    pulled: int,
    before: int,
    on_their_way: tuple[int, int],
) -> Iterator[Moment]:
    held, biggest = cost.held_bytes, cost.biggest_bytes
    there, back = (
        piece.peak_bytes + more
        for piece, more in zip((cost.forward, cost.backward), on_their_way, strict=True)
    )
    yield Moment("forward", saved + read, there, 0, held, biggest)
    yield Moment("backward", saved + pulled, back, summed, held, biggest)
    given = trained + sum(cost.ends[1])
    yield Moment("accumulate", before + pulled, given, summed, held, biggest)


def _values(calls: Sequence[Call], costs: Sequence[FunctionCost], early: Set[str]) -> list[_Value]:
    """The values between calls."""
    found: dict[str, _Value] = {}
    for at, (call, cost) in enumerate(zip(calls, costs, strict=True)):
        sizes, gradients, made = cost.ends
        ends = zip(call.arguments, sizes, gradients, cost.saved_arguments, strict=True)
        for name, size, gradient, kept in ends:
            if name in early:
                continue
            value = found.setdefault(name, _Value(size, -1, len(calls)))
            value.last = at
            if gradient:
                value.gradient, value.pulled = gradient, at
            if kept:
                value.saver = min(value.saver, at)
        for name, size, kept in zip(call.results, made, cost.saved_results, strict=True):
            value = found[name] = _Value(size, at, len(calls))
            if kept:
                value.saver = at
    return list(found.values())


def _add(line: list[int], first: int, end: int, amount: int) -> None:
    """`amount` more from one place up to, not at, another."""
    if first < end:
        line[first] += amount
        line[end] -= amount


def _ends(costs: Sequence[FunctionCost]) -> Iterator[int]:
    """Places that have not equal calls on both sides, nor at two places on either."""
    number = len(costs)
    for at in range(number):
        near = range(at - 2, at + 3)
        if near[0] < 0 or near[-1] >= number or any(costs[i] is not costs[at] for i in near):
            yield at
