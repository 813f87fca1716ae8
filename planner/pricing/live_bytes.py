"""Bytes live while each call of a stage runs: the points in time among which its peak lies.

forward     ▁▂▃▄▅▆   values wait for backward, or for the calls that read them
backward    ▆▅▄▃▂▁   values are freed once read; gradients of weights stay
in parts    ▆▆▅▅▄▄   what gradients of weights are computed from stays until its own step, which frees it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import accumulate
from typing import NamedTuple

from ...cost_model.operators.function_cost import FunctionCost, PartsCost
from ...ir.model.model import Call
from ...ir.plan.workload import PeakPoint, Phase
from ..solvers.pareto import pareto

PHASES: tuple[Phase, ...] = ("forward", "backward", "accumulate")


class _Value:
    """A value between calls: its bytes, its gradient's bytes, and the positions of its uses.

    `born`: the call that produces it (-1: an earlier stage); `last`: its last reader;
    `gradient_first`: the first call whose backward adds to its gradient; `saver`: the first call
    that saves it.
    """

    __slots__ = ("born", "bytes", "gradient", "gradient_first", "last", "saver")

    def __init__(self, size: int, born: int, never: int) -> None:
        self.bytes, self.born, self.gradient = size, born, 0
        self.last, self.gradient_first, self.saver = born, born, never


def peak_points(
    calls: Sequence[Call],
    costs: Sequence[FunctionCost],
    trained: Sequence[int],
    batch_only: Set[str],
    copies_hide: bool,
) -> tuple[PeakPoint, ...]:
    """Peak points of forward and backward of every call of a stage, without dominated ones.

    Between equal neighbouring calls bytes grow evenly, so only the ends of such a run are counted.
    `trained`: bytes of each call's weights that get gradients; `batch_only`: names of values that
    stay with the batch; `copies_hide`: whether copies to host memory overlap with other calls.
    """
    saved, readable, gradients = _between_calls(calls, costs, batch_only)
    reduced_bytes = list(accumulate(reversed(trained), initial=0))[::-1]
    parted = [0 if cost.parts is None else cost.parts.saved_bytes for cost in costs]
    parted_before = list(accumulate(parted, initial=0))
    last = len(costs) - 1
    return _undominated(
        point
        for position in _run_ends(costs)
        for point in _call_points(
            costs[position],
            _Surroundings(
                saved_bytes=saved[position],
                saved_before_bytes=saved[position - 1] if position else 0,
                readable_bytes=readable[position],
                gradient_bytes=gradients[position],
                trained_bytes=trained[position],
                reduced_bytes=reduced_bytes[position + 1],
                host_copies=_host_copies(costs, position) if copies_hide else _HostCopies(0, 0),
                before_bytes=costs[position - 1].state_tensor_bytes if position else 0,
                after_bytes=costs[position + 1].state_tensor_bytes if position < last else 0,
                sent_bytes=trained[position + 1] if position < last else 0,
                parted_bytes=parted_before[position + 1],
                parted_before_bytes=parted_before[position],
                parted_behind_bytes=parted_before[-1] - parted_before[position + 1],
            ),
        )
    )


def forward_points(
    calls: Sequence[Call],
    costs: Sequence[FunctionCost],
    unread: Sequence[int],
    batch_only: Set[str],
    copies_hide: bool,
) -> tuple[tuple[int, int], ...]:
    """Live bytes while a call of a stage's forward runs, and bytes of weights that only later calls read
    (`unread`, per call), without dominated ones."""
    saved, readable, _ = _between_calls(calls, costs, batch_only)
    points = [
        (saved[at] + readable[at] + costs[at].forward.peak_bytes + copies.to_host, unread[at])
        for at in _run_ends(costs)
        for copies in (_host_copies(costs, at) if copies_hide else _HostCopies(0, 0),)
    ]
    return tuple(pareto(points, lambda point: (-point[0], -point[1])))


def _between_calls(
    calls: Sequence[Call], costs: Sequence[FunctionCost], batch_only: Set[str]
) -> tuple[list[int], list[int], list[int]]:
    """Bytes beside every call: saved by it and those before, of values that forward still reads, and of
    gradients in backward."""
    count = len(calls)
    saved, readable, gradients = ([0] * (count + 1) for _ in range(3))
    for value in _values(calls, costs, batch_only):
        _add_range(saved, value.saver, count, value.bytes)
        last_position = (
            count - 1 if value.born < 0 else value.last
        )  # an earlier stage's values are live to the end
        _add_range(readable, value.born + 1, min(last_position + 1, value.saver), value.bytes)
        _add_range(gradients, max(value.born, 0), value.gradient_first, value.gradient)
    for position, cost in enumerate(costs):
        saved[position] += cost.saved_bytes
    saved, readable, gradients = (
        list(accumulate(deltas)) for deltas in (saved, readable, gradients)
    )
    return saved, readable, gradients


class _HostCopies(NamedTuple):
    """Bytes of other calls that are copied meanwhile."""

    to_host: int
    from_host: int


class _Surroundings(NamedTuple):
    """Bytes around one call of a stage.

    `saved_bytes`: saved by it and all calls before, `saved_before_bytes` without it; values between
    calls: `readable_bytes` in forward, `gradient_bytes` in backward; `trained_bytes`: of its weights
    that get gradients, `reduced_bytes` of the weights of later calls, whose gradients exist;
    `before_bytes` and `after_bytes`: weights of the calls next to it, `sent_bytes`: of the latter those
    that get gradients; what waits between the parts of backward, of calls up to this one:
    `parted_bytes`, without it: `parted_before_bytes`, of those behind it: `parted_behind_bytes`.
    """

    saved_bytes: int
    saved_before_bytes: int
    readable_bytes: int
    gradient_bytes: int
    trained_bytes: int
    reduced_bytes: int
    host_copies: _HostCopies
    before_bytes: int
    after_bytes: int
    sent_bytes: int
    parted_bytes: int
    parted_before_bytes: int
    parted_behind_bytes: int


def _host_copies(costs: Sequence[FunctionCost], position: int) -> _HostCopies:
    """Copies to host during this call's forward, and back during its backward.

    Those of the previous call; the last call also waits for its own.
    """
    previous = costs[position - 1].host_bytes
    leaving = costs[position].host_bytes if position + 1 == len(costs) else 0
    return _HostCopies(previous, leaving + (previous if position else 0))


def _undominated(points: Iterable[PeakPoint]) -> tuple[PeakPoint, ...]:
    """Peak points that no other of their phase exceeds in every amount."""
    by_phase: dict[tuple[bool, Phase], list[PeakPoint]] = {
        (apart, phase): [] for apart in (False, True) for phase in PHASES
    }
    for point in points:
        by_phase[point.apart, point.phase].append(point)
    return tuple(p for of_phase in by_phase.values() for p in pareto(of_phase, _missing_bytes))


def _missing_bytes(point: PeakPoint) -> tuple[int, ...]:
    """Objectives under which the point with the most bytes is best."""
    return (
        -point.waiting_bytes,
        -point.call_bytes,
        -point.complete_gradient_bytes,
        -point.weight_bytes,
        -point.largest_weight_bytes,
        -point.next_weight_bytes,
        -point.sent_weight_bytes,
        point.own_bytes,
    )


def _call_points(cost: FunctionCost, around: _Surroundings) -> Iterator[PeakPoint]:
    """Peak points of one call: forward, backward, and accumulation of its gradients."""
    weights, largest = cost.state_tensor_bytes, cost.largest_state_tensor_bytes
    yield PeakPoint(
        "forward",
        around.saved_bytes + around.readable_bytes,
        cost.forward.peak_bytes + around.host_copies.to_host,
        0,
        weights,
        largest,
        around.after_bytes,
        own_bytes=cost.saved_bytes + sum(cost.saved_results),
    )
    if cost.parts is not None:
        yield from _points_in_parts(cost, cost.parts, around)
        return
    yield PeakPoint(
        "backward",
        around.saved_bytes + around.parted_behind_bytes + around.gradient_bytes,
        cost.backward.peak_bytes + around.host_copies.from_host,
        around.reduced_bytes,
        weights,
        largest,
        around.before_bytes,
        around.sent_bytes,
    )
    yield PeakPoint(
        "accumulate",
        around.saved_before_bytes + around.parted_behind_bytes + around.gradient_bytes,
        around.trained_bytes + sum(cost.boundary_bytes[1]),
        around.reduced_bytes,
        weights,
        largest,
        around.before_bytes,
        around.sent_bytes,
    )


def _points_in_parts(
    cost: FunctionCost, parts: PartsCost, around: _Surroundings
) -> Iterator[PeakPoint]:
    """Peak points of backward in two parts: no gradient of a weight is made in the first, and none of an
    activation in the second, which reads weights only where its operators do."""
    weights, largest = cost.state_tensor_bytes, cost.largest_state_tensor_bytes
    yield PeakPoint(
        "backward",
        around.saved_bytes + around.parted_behind_bytes + around.gradient_bytes,
        parts.inputs_peak_bytes + around.host_copies.from_host,
        0,
        weights,
        largest,
        around.before_bytes,
    )
    yield PeakPoint(
        "backward",
        around.parted_bytes,
        parts.weights_peak_bytes,
        around.reduced_bytes,
        weights if parts.weights_read else 0,
        largest if parts.weights_read else 0,
        0,
        around.sent_bytes,
        apart=True,
    )
    yield PeakPoint(
        "accumulate",
        around.parted_before_bytes,
        around.trained_bytes,
        around.reduced_bytes,
        weights,
        largest,
        0,
        around.sent_bytes,
        apart=True,
    )


def _values(
    calls: Sequence[Call], costs: Sequence[FunctionCost], batch_only: Set[str]
) -> list[_Value]:
    """Values that cross calls of the stage, batch-only ones excepted."""
    values: dict[str, _Value] = {}
    for position, (call, cost) in enumerate(zip(calls, costs, strict=True)):
        sizes, gradients, result_sizes = cost.boundary_bytes
        arguments = zip(call.arguments, sizes, gradients, cost.saved_arguments, strict=True)
        for name, size, gradient, saved in arguments:
            if name in batch_only:
                continue
            value = values.setdefault(name, _Value(size, -1, len(calls)))
            value.last = position
            if gradient:
                value.gradient, value.gradient_first = gradient, position
            if saved:
                value.saver = min(value.saver, position)
        for name, size, saved in zip(call.results, result_sizes, cost.saved_results, strict=True):
            value = values[name] = _Value(size, position, len(calls))
            if saved:
                value.saver = position
    return list(values.values())


def _add_range(deltas: list[int], first: int, end: int, amount: int) -> None:
    """Add `amount` to positions `first` to `end - 1` of a difference array."""
    if first < end:
        deltas[first] += amount
        deltas[end] -= amount


def _run_ends(costs: Sequence[FunctionCost]) -> Iterator[int]:
    """Positions less than two away from the end of a run of equal calls."""
    count = len(costs)
    for position in range(count):
        neighbours = range(position - 2, position + 3)
        if (
            neighbours[0] < 0
            or neighbours[-1] >= count
            or any(costs[i] is not costs[position] for i in neighbours)
        ):
            yield position
