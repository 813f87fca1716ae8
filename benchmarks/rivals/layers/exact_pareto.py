"""Pareto front of one stage: counts of choices that no others beat, found breadth first.

Choices are decided one after the other: how many layers take each. A partial assignment is
dropped when the curves of the remaining layers say that it cannot fit, or that no step with it is
below the limit. Where too many remain, those with the least lower bounds are kept, and the least
lower bound of the others bounds what was missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plait.benchmarks.rivals.layers.problem import Choice, ChoiceCounts, EqualLayers, LayerStage
from plait.planner.layers.relaxation import NOTHING, CostCurve, hull, sum_curves

Reals = NDArray[np.float64]
LowerBound = Callable[
    [Reals, Reals], Reals
]  # of a step, from seconds and synchronised seconds of a stage


class ParetoFront(NamedTuple):
    """Assignments of one stage, one a row, by seconds.

    `counts`: one column for each (layers, choice) of `choices`; `bound`: least lower bound of
    assignments that were dropped for lack of width.
    """

    seconds: Reals
    synchronised: Reals
    counts: NDArray[np.int64]
    choices: tuple[tuple[int, int], ...]
    bound: float

    def row(self, stage: LayerStage, index: int) -> tuple[ChoiceCounts, ...]:
        """One assignment as counts by layers and choice."""
        counts = [[0] * len(layers.choices) for layers in stage.layers]
        for (layers, choice), count in zip(self.choices, self.counts[index], strict=True):
            counts[layers][choice] = int(count)
        return tuple(map(tuple, counts))


class LowerBoundCurves(NamedTuple):
    """Lower bounds of undecided layers over bytes: seconds without and with synchronisation."""

    seconds: CostCurve
    synchronised: CostCurve


NO_LAYERS = LowerBoundCurves(NOTHING, NOTHING)


class PartialAssignments(NamedTuple):
    """Partial assignments, one a row: bytes and seconds so far, and remaining layers of the run."""

    used_bytes: Reals
    seconds: Reals
    synchronised: Reals
    remaining: NDArray[np.int64]
    counts: NDArray[np.int64]
    lower_bound: Reals

    def only(self, keep: NDArray[np.bool_] | NDArray[np.intp]) -> PartialAssignments:
        return PartialAssignments(
            self.used_bytes[keep],
            self.seconds[keep],
            self.synchronised[keep],
            self.remaining[keep],
            self.counts[keep],
            self.lower_bound[keep],
        )

    def taking(self, choice: Choice, numbers: NDArray[np.int64]) -> PartialAssignments:
        return PartialAssignments(
            self.used_bytes + numbers * choice.peak_bytes,
            self.seconds + numbers * choice.seconds,
            self.synchronised + numbers * choice.synchronised_seconds,
            self.remaining - numbers,
            np.column_stack([self.counts, numbers]),
            self.lower_bound,
        )


def undominated_choices(layers: EqualLayers) -> list[int]:
    """Choices of these layers that no other beats or equals in everything."""
    undominated: list[int] = []
    objectives = [(c.seconds, c.synchronised_seconds, c.peak_bytes) for c in layers.choices]
    for index in sorted(range(len(objectives)), key=objectives.__getitem__):
        objective = objectives[index]
        if not any(
            all(a <= b for a, b in zip(objectives[k], objective, strict=True)) for k in undominated
        ):
            undominated.append(index)
    return undominated


def lower_bound_curves(stage: LayerStage) -> LowerBoundCurves:
    """Lower bounds of the seconds of all layers of a stage, over the bytes that they hold."""
    return _later_curves(stage, 0)


def pareto_front(
    stage: LayerStage, lower_bound: LowerBound, limit: float, width: int
) -> ParetoFront:
    """Assignments that fit, are below the limit, and are beaten by no other in both seconds.

    Complete unless more than `width` partial assignments remain at some point.
    """
    names: list[tuple[int, int]] = []
    rows, bound = _start(stage), math.inf
    for number, layers in enumerate(stage.layers):
        rows = rows._replace(remaining=np.full(len(rows.remaining), layers.count))
        later_layers, order = _later_curves(stage, number + 1), undominated_choices(layers)
        for place, index in enumerate(order):
            choice, later_choices = (
                layers.choices[index],
                [layers.choices[k] for k in order[place + 1 :]],
            )
            rows = (
                rows.taking(choice, rows.remaining) if not later_choices else _branch(rows, choice)
            )
            names.append((number, index))
            rows = _prune(rows, later_choices, later_layers, stage.free_bytes, lower_bound)
            rows = rows.only(rows.lower_bound < limit)
            rows, dropped = _narrow(rows, width)
            bound = min(bound, dropped)
    return _undominated(rows, tuple(names), bound)


def _start(stage: LayerStage) -> PartialAssignments:
    zero, none = np.zeros(1), np.zeros(1, np.int64)
    seconds, synchronised = zero + stage.seconds, zero + stage.synchronised_seconds
    return PartialAssignments(zero, seconds, synchronised, none, np.zeros((1, 0), np.int64), zero)


def _narrow(rows: PartialAssignments, width: int) -> tuple[PartialAssignments, float]:
    if len(rows.lower_bound) <= width:
        return rows, math.inf
    order = np.argsort(rows.lower_bound, kind="stable")
    return rows.only(order[:width]), float(rows.lower_bound[order[width]])


def _later_curves(stage: LayerStage, start: int) -> LowerBoundCurves:
    """Curves of the stage's layers from index `start` on."""
    runs = [_curves(layers.choices, layers.count) for layers in stage.layers[start:]]
    return (
        LowerBoundCurves(*(sum_curves(stage_curves) for stage_curves in zip(*runs, strict=True)))
        if runs
        else NO_LAYERS
    )


def _curves(choices: tuple[Choice, ...] | list[Choice], count: int) -> LowerBoundCurves:
    sizes = [c.peak_bytes for c in choices]
    return LowerBoundCurves(
        hull(sizes, [c.seconds for c in choices]).scaled(count),
        hull(sizes, [c.synchronised_seconds for c in choices]).scaled(count),
    )


def _branch(rows: PartialAssignments, choice: Choice) -> PartialAssignments:
    """Each row once for every number of layers that may take a choice."""
    which = np.repeat(np.arange(len(rows.remaining)), rows.remaining + 1)
    first = np.concatenate([[0], np.cumsum(rows.remaining + 1)[:-1]])
    return rows.only(which).taking(choice, np.arange(len(which)) - first[which])


def _prune(
    rows: PartialAssignments,
    later_choices: list[Choice],
    later_layers: LowerBoundCurves,
    free: int,
    lower_bound: LowerBound,
) -> PartialAssignments:
    """Rows that may still fit, with lower bounds by the curves of undecided layers."""
    if not later_choices:
        return _bounded(rows, later_layers, free, lower_bound)
    one_layer = _curves(later_choices, 1)
    by_remaining = [
        _bounded(
            rows.only(rows.remaining == remaining),
            _remaining_curves(one_layer, int(remaining), later_layers),
            free,
            lower_bound,
        )
        for remaining in np.unique(rows.remaining)
    ]
    return (
        PartialAssignments(*map(np.concatenate, zip(*by_remaining, strict=True)))
        if by_remaining
        else rows
    )


def _remaining_curves(
    one_layer: LowerBoundCurves, remaining: int, later_layers: LowerBoundCurves
) -> LowerBoundCurves:
    return LowerBoundCurves(
        *(
            sum_curves([w.scaled(remaining), b])
            for w, b in zip(one_layer, later_layers, strict=True)
        )
    )


def _bounded(
    rows: PartialAssignments, rest: LowerBoundCurves, free: int, lower_bound: LowerBound
) -> PartialAssignments:
    rows = rows.only(free - rows.used_bytes >= rest.seconds.size[0])
    free_bytes = free - rows.used_bytes
    least = rows.seconds + rest.seconds.at(free_bytes)
    return rows._replace(
        lower_bound=lower_bound(least, rows.synchronised + rest.synchronised.at(free_bytes))
    )


def _undominated(
    rows: PartialAssignments, names: tuple[tuple[int, int], ...], bound: float
) -> ParetoFront:
    """Rows by seconds, each with less synchronised seconds than all before."""
    rows = rows.only(np.lexsort((rows.used_bytes, rows.synchronised, rows.seconds)))
    rows = rows.only(np.array(list(_falling(rows.synchronised)), np.intp))
    return ParetoFront(rows.seconds, rows.synchronised, rows.counts, names, bound)


def _falling(values: Reals) -> Iterator[int]:
    least = np.inf
    for index, value in enumerate(values):
        if value < least:
            least = value
            yield index
