"""Exact search: the fastest solution for all stages of a problem, or of the best of several
problems.

Curves bound every problem from below, and their corners, rounded, give initial solutions.
Problems are then solved in order of their bounds, each against the best so far, until no bound is
below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from plait.benchmarks.rivals.layers.exact_pareto import (
    LowerBoundCurves,
    ParetoFront,
    Reals,
    lower_bound_curves,
    pareto_front,
)
from plait.benchmarks.rivals.layers.objective import Amount, Objective
from plait.benchmarks.rivals.layers.problem import (
    ChoiceCounts,
    LayerProblem,
    LayerSolution,
    LayerStage,
)
from plait.benchmarks.rivals.layers.rounding import rounded_counts

TOLERANCE = 1e-12  # relative, of sums in another order
WIDTH = 200_000  # partial assignments kept at a time


class Bounded(NamedTuple):
    """A problem, with lower bounds of its stages' seconds and of its step."""

    problem: LayerProblem
    number: int
    seconds: list[Amount]
    synchronised: list[Amount]
    bound: float


class BestSolution(NamedTuple):
    """The best solution of several problems, and the number of its problem."""

    number: int
    solution: LayerSolution


def solve(problem: LayerProblem, objective: Objective, width: int = WIDTH) -> LayerSolution | None:
    """The fastest solution that fits, or None where none does."""
    best = fastest([problem], objective, width)
    return best and best.solution


def fastest(
    problems: Sequence[LayerProblem],
    objective: Objective,
    width: int = WIDTH,
    stop: Callable[[], bool] = lambda: False,
) -> BestSolution | None:
    """The fastest solution over all problems, or None where no problem has one.

    It is optimal unless more than `width` partial assignments remained somewhere or `stop` ended
    the search between two problems; `bound_seconds` says by how much it may miss the optimum.
    """
    curves_by_layers: dict[int, LowerBoundCurves] = {}
    by_bound = [_bounded(p, n, objective, curves_by_layers) for n, p in enumerate(problems)]
    remaining = sorted(
        (b for b in by_bound if b.bound < math.inf), key=lambda b: (b.bound, b.number)
    )
    best: BestSolution | None = None
    for by_bound in remaining:
        best = _better_of(best, by_bound.number, _initial(by_bound.problem, objective))
    unexplored_bound = math.inf
    while remaining and not stop() and remaining[0].bound < _limit(best):
        by_bound = remaining.pop(0)
        candidate, bound = _solve(by_bound, objective, _limit(best), width)
        best, unexplored_bound = (
            _better_of(best, by_bound.number, candidate),
            min(unexplored_bound, bound),
        )
    if best is None:
        return None
    bound = min([best.solution.step_seconds, unexplored_bound, *(b.bound for b in remaining[:1])])
    return BestSolution(best.number, replace(best.solution, bound_seconds=bound))


def _limit(best: BestSolution | None) -> float:
    """Seconds that a solution must be faster than."""
    return best.solution.step_seconds * (1 - TOLERANCE) if best else math.inf


def _better_of(
    best: BestSolution | None, number: int, candidate: LayerSolution | None
) -> BestSolution | None:
    return (
        BestSolution(number, candidate)
        if candidate and candidate.step_seconds < _limit(best)
        else best
    )


def _bounded(
    problem: LayerProblem,
    number: int,
    objective: Objective,
    curves_by_layers: dict[int, LowerBoundCurves],
) -> Bounded:
    seconds: list[Amount] = []
    synchronised: list[Amount] = []
    for stage in problem.stages:
        key = id(stage.layers)  # problems share layers, and hold them while this runs
        candidate = curves_by_layers.get(key) or curves_by_layers.setdefault(
            key, lower_bound_curves(stage)
        )
        seconds.append(stage.seconds + float(candidate.seconds.at(stage.free_bytes)))
        least = float(candidate.synchronised.at(stage.free_bytes))
        synchronised.append(stage.synchronised_seconds + least)
    fits = all(t < math.inf for t in seconds)
    bound = (
        objective.lower_bound(seconds, synchronised, problem.micro_batches) if fits else math.inf
    )
    return Bounded(problem, number, seconds, synchronised, float(bound))


def _initial(problem: LayerProblem, objective: Objective) -> LayerSolution | None:
    """An initial solution: corners of the curves, rounded down."""
    counts = [rounded_counts(stage, problem.micro_batches) for stage in problem.stages]
    if any(stage_counts is None for stage_counts in counts):
        return None
    return evaluate(
        problem,
        objective,
        tuple(stage_counts for stage_counts in counts if stage_counts is not None),
    )


def evaluate(
    problem: LayerProblem, objective: Objective, counts: tuple[tuple[ChoiceCounts, ...], ...]
) -> LayerSolution:
    """The solution of these counts, with its step seconds."""
    stage_seconds = [
        _stage_seconds(stage, stage_counts)
        for stage, stage_counts in zip(problem.stages, counts, strict=True)
    ]
    seconds, synchronised = zip(*stage_seconds, strict=True)
    step = float(objective.step(seconds, synchronised, problem.micro_batches))
    return LayerSolution(counts, step, 0.0)


def _stage_seconds(stage: LayerStage, counts: tuple[ChoiceCounts, ...]) -> tuple[float, float]:
    seconds, synchronised = stage.seconds, stage.synchronised_seconds
    for layers, stage_counts in zip(stage.layers, counts, strict=True):
        for choice, count in zip(layers.choices, stage_counts, strict=True):
            seconds += count * choice.seconds
            synchronised += count * choice.synchronised_seconds
    return seconds, synchronised


def _solve(
    bounded: Bounded, objective: Objective, limit: float, width: int
) -> tuple[LayerSolution | None, float]:
    """A solution below the limit, if there is one, and a lower bound of what was not explored."""
    bound, fronts = math.inf, list[ParetoFront]()
    for stage in range(len(bounded.problem.stages)):
        fronts.append(_front(bounded, stage, objective, limit, width))
        bound = min(bound, fronts[-1].bound)
        if not len(fronts[-1].seconds):
            return None, bound
    chosen, dropped = _combinations(bounded, fronts, objective, limit, width)
    if not len(chosen):
        return None, min(bound, dropped)
    seconds, synchronised = _seconds_of(fronts, chosen)
    steps = objective.step(seconds, synchronised, bounded.problem.micro_batches)
    rows = zip(fronts, bounded.problem.stages, chosen[int(np.argmin(steps))], strict=True)
    counts = tuple(stage_counts.row(stage, int(row)) for stage_counts, stage, row in rows)
    return evaluate(bounded.problem, objective, counts), min(bound, dropped)


def _front(
    bounded: Bounded, stage: int, objective: Objective, limit: float, width: int
) -> ParetoFront:
    """Pareto front of one stage, below the limit if all other stages are at their bounds."""

    def lower_bound(seconds: Reals, synchronised: Reals) -> Reals:
        all_seconds, all_synchronised = list(bounded.seconds), list(bounded.synchronised)
        all_seconds[stage], all_synchronised[stage] = seconds, synchronised
        return np.asarray(
            objective.lower_bound(all_seconds, all_synchronised, bounded.problem.micro_batches)
        )

    return pareto_front(bounded.problem.stages[stage], lower_bound, limit, width)


def _combinations(
    bounded: Bounded, fronts: list[ParetoFront], objective: Objective, limit: float, width: int
) -> tuple[NDArray[np.intp], float]:
    """Rows of all stages' fronts combined, stage by stage, with lower bounds for later stages."""
    chosen, bound = np.zeros((1, 0), np.intp), math.inf
    for stage, stage_counts in enumerate(fronts):
        rows = np.arange(len(stage_counts.seconds))
        chosen = np.column_stack([np.repeat(chosen, len(rows), 0), np.tile(rows, len(chosen))])
        seconds, synchronised = _seconds_of(fronts[: stage + 1], chosen)
        seconds += [float(f.seconds[0]) for f in fronts[stage + 1 :]]
        synchronised += [float(f.synchronised[-1]) for f in fronts[stage + 1 :]]
        lower_bounds = np.asarray(
            objective.lower_bound(seconds, synchronised, bounded.problem.micro_batches)
        )
        order = np.argsort(lower_bounds, kind="stable")
        order = order[lower_bounds[order] < limit]
        bound = min([bound, *lower_bounds[order[width : width + 1]]])
        chosen = chosen[order[:width]]
    return chosen, bound


def _seconds_of(
    fronts: list[ParetoFront], chosen: NDArray[np.intp]
) -> tuple[list[Amount], list[Amount]]:
    pairs = list(zip(fronts, chosen.T, strict=True))
    return [f.seconds[rows] for f, rows in pairs], [f.synchronised[rows] for f, rows in pairs]
