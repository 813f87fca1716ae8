"""The fastest way of running all stages of a problem, or of the best of several problems.

Curves bound every problem from below and their corners, rounded, give first solutions. Problems are
then solved in order of their bounds, each against the best so far, until no bound is below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from .exact_front import Curves, Front, Reals, curves, front
from .objective import Amount, Objective
from .problem import Counts, Problem, Solution, Stage
from .rounding import rounded

TOLERANCE = 1e-12  # relative, of sums in another order
WIDTH = 200_000  # partial ways at a time


class Bounded(NamedTuple):
    """A problem, and what each stage and the step take at least."""

    problem: Problem
    number: int
    seconds: list[Amount]
    synchronised: list[Amount]
    bound: float


class Best(NamedTuple):
    """The best solution of several problems, and of which it is."""

    number: int
    solution: Solution


def solve(problem: Problem, objective: Objective, width: int = WIDTH) -> Solution | None:
    """The fastest solution that fits, or None where none does."""
    best = fastest([problem], objective, width)
    return best and best.solution


def fastest(
    problems: Sequence[Problem],
    objective: Objective,
    width: int = WIDTH,
    stop: Callable[[], bool] = lambda: False,
) -> Best | None:
    """The fastest solution of all problems, or None where no problem has one.

    It is the fastest unless more than `width` partial ways remained somewhere or `stop` ended the
    search between two problems; its bound says by how much it can be missed.
    """
    known: dict[int, Curves] = {}
    bounded = [_bounded(p, n, objective, known) for n, p in enumerate(problems)]
    waiting = sorted((b for b in bounded if b.bound < math.inf), key=lambda b: (b.bound, b.number))
    best: Best | None = None
    for item in waiting:
        best = _better(best, item.number, _start(item.problem, objective))
    unseen = math.inf
    while waiting and not stop() and waiting[0].bound < _limit(best):
        item = waiting.pop(0)
        found, bound = _solve(item, objective, _limit(best), width)
        best, unseen = _better(best, item.number, found), min(unseen, bound)
    if best is None:
        return None
    bound = min([best.solution.step_seconds, unseen, *(b.bound for b in waiting[:1])])
    return Best(best.number, replace(best.solution, bound_seconds=bound))


def _limit(best: Best | None) -> float:
    """What a solution must be faster than."""
    return best.solution.step_seconds * (1 - TOLERANCE) if best else math.inf


def _better(best: Best | None, number: int, made: Solution | None) -> Best | None:
    return Best(number, made) if made and made.step_seconds < _limit(best) else best


def _bounded(
    problem: Problem, number: int, objective: Objective, known: dict[int, Curves]
) -> Bounded:
    seconds: list[Amount] = []
    synchronised: list[Amount] = []
    for stage in problem.stages:
        key = id(stage.layers)  # problems share layers, and hold them while this runs
        found = known.get(key) or known.setdefault(key, curves(stage))
        seconds.append(stage.seconds + float(found.seconds.at(stage.free_bytes)))
        least = float(found.synchronised.at(stage.free_bytes))
        synchronised.append(stage.synchronised_seconds + least)
    fits = all(t < math.inf for t in seconds)
    bound = objective.floor(seconds, synchronised, problem.micro_batches) if fits else math.inf
    return Bounded(problem, number, seconds, synchronised, float(bound))


def _start(problem: Problem, objective: Objective) -> Solution | None:
    """A first solution: corners of the curves, rounded down."""
    counts = [rounded(stage, problem.micro_batches) for stage in problem.stages]
    if any(own is None for own in counts):
        return None
    return valued(problem, objective, tuple(own for own in counts if own is not None))


def valued(
    problem: Problem, objective: Objective, counts: tuple[tuple[Counts, ...], ...]
) -> Solution:
    sums = [_sums(stage, own) for stage, own in zip(problem.stages, counts, strict=True)]
    seconds, synchronised = zip(*sums, strict=True)
    step = float(objective.step(seconds, synchronised, problem.micro_batches))
    return Solution(counts, step, 0.0)


def _sums(stage: Stage, counts: tuple[Counts, ...]) -> tuple[float, float]:
    seconds, synchronised = stage.seconds, stage.synchronised_seconds
    for layers, own in zip(stage.layers, counts, strict=True):
        for choice, count in zip(layers.choices, own, strict=True):
            seconds += count * choice.seconds
            synchronised += count * choice.synchronised_seconds
    return seconds, synchronised


def _solve(
    item: Bounded, objective: Objective, limit: float, width: int
) -> tuple[Solution | None, float]:
    """A solution below the limit, if one is found, and the bound of what was not looked at."""
    bound, fronts = math.inf, list[Front]()
    for stage in range(len(item.problem.stages)):
        fronts.append(_front(item, stage, objective, limit, width))
        bound = min(bound, fronts[-1].bound)
        if not len(fronts[-1].seconds):
            return None, bound
    chosen, dropped = _combinations(item, fronts, objective, limit, width)
    if not len(chosen):
        return None, min(bound, dropped)
    seconds, synchronised = _columns(fronts, chosen)
    steps = objective.step(seconds, synchronised, item.problem.micro_batches)
    rows = zip(fronts, item.problem.stages, chosen[int(np.argmin(steps))], strict=True)
    counts = tuple(own.row(stage, int(row)) for own, stage, row in rows)
    return valued(item.problem, objective, counts), min(bound, dropped)


def _front(item: Bounded, stage: int, objective: Objective, limit: float, width: int) -> Front:
    """Ways of running one stage, below the limit if all other stages do their best."""

    def floor(seconds: Reals, synchronised: Reals) -> Reals:
        all_seconds, all_synchronised = list(item.seconds), list(item.synchronised)
        all_seconds[stage], all_synchronised[stage] = seconds, synchronised
        return np.asarray(
            objective.floor(all_seconds, all_synchronised, item.problem.micro_batches)
        )

    return front(item.problem.stages[stage], floor, limit, width)


def _combinations(
    item: Bounded, fronts: list[Front], objective: Objective, limit: float, width: int
) -> tuple[NDArray[np.intp], float]:
    """Rows of all fronts together: stage by stage, with floors for those to come."""
    chosen, bound = np.zeros((1, 0), np.intp), math.inf
    for stage, own in enumerate(fronts):
        rows = np.arange(len(own.seconds))
        chosen = np.column_stack([np.repeat(chosen, len(rows), 0), np.tile(rows, len(chosen))])
        seconds, synchronised = _columns(fronts[: stage + 1], chosen)
        seconds += [float(f.seconds[0]) for f in fronts[stage + 1 :]]
        synchronised += [float(f.synchronised[-1]) for f in fronts[stage + 1 :]]
        floors = np.asarray(objective.floor(seconds, synchronised, item.problem.micro_batches))
        order = np.argsort(floors, kind="stable")
        order = order[floors[order] < limit]
        bound = min([bound, *floors[order[width : width + 1]]])
        chosen = chosen[order[:width]]
    return chosen, bound


def _columns(fronts: list[Front], chosen: NDArray[np.intp]) -> tuple[list[Amount], list[Amount]]:
    pairs = list(zip(fronts, chosen.T, strict=True))
    return [f.seconds[rows] for f, rows in pairs], [f.synchronised[rows] for f, rows in pairs]
