"""Several ways of running equal layers in one plan: how many layers take which.

Uniform candidates that split the devices alike (the same axes inside a replica of the batch, as many
replicas, stages and micro-batches) pass values between them for nothing. So layers of one function
in one stage are interchangeable, and what is left to choose are counts: an integer program of a few
dozen variables per stage. Stages meet only in the step's time, which grows with each one's time per
micro-batch and per step; each minimises the sum of both over a step, which is exact for one stage.

    stage 0   20 layers zero3, recompute │ 12 layers zero3, keep     fills the budget
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from typing import NamedTuple

import msgspec
from ortools.math_opt.python import mathopt

from ..cost_model.memory import MARGIN, PASSING, part_terms
from .candidate import Candidate, Decision
from .entries import Entry
from .evaluate import Evaluator
from .layered.relaxation import hull, together

GAP = 1e-4  # relative, of the integer program
CLOSE = 0.01  # of the memory at hand: what is left is not worth another try
TRIES = 6  # each with a budget put right by what the last one really needs: layers share bytes


class Way(NamedTuple):
    """One call of a class under one choice: seconds per micro-batch and per step, bytes that add up
    over calls, and bytes of which the worst call counts."""

    seconds: float
    sync_seconds: float
    lasting_bytes: float
    passing_bytes: tuple[float, ...]


class Class(msgspec.Struct, frozen=True):
    """Calls of one function in one stage, and a way of running them for every choice."""

    stage: int
    calls: tuple[int, ...]
    ways: tuple[Way, ...]
    tied: bool


Group = Sequence[Candidate]  # uniform candidates that split the devices alike


def groups(found: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates by how they split the devices, the group with the fastest member first; of each
    group those that nothing faster undercuts in memory."""
    made: dict[object, list[Candidate]] = {}
    for candidate in found:
        (strategy,) = candidate.strategies
        key = (strategy.inside, strategy.batch_ways(), strategy.stages, candidate.micro_batches)
        made.setdefault(key, []).append(candidate)
    useful = [_front(group) for group in made.values()]
    return sorted((g for g in useful if len(g) > 1), key=fastest)


def _front(group: Group) -> list[Candidate]:
    kept: list[Candidate] = []
    for candidate in sorted(group, key=lambda c: (c.step_seconds, c.peak_bytes, c.word)):
        if not kept or candidate.peak_bytes < kept[-1].peak_bytes:
            kept.append(candidate)
    return kept


def fastest(group: Group) -> float:
    """No blend of a group is faster than this."""
    return min(candidate.step_seconds for candidate in group)


def floor(evaluator: Evaluator, group: Group, budget: int) -> float:
    """Seconds that no blend of a group within the budget is below: those of its fastest member with
    a first stage, where most waits, that keeps the budget if layers could be cut."""
    leader = min(group, key=lambda c: c.step_seconds)
    micro_batches, curves = leader.micro_batches, []
    for c in takewhile(lambda c: c.stage == 0, _classes(evaluator, group, leader.bounds, micro_batches)):
        sizes = [way.lasting_bytes for way in c.ways]
        costs = [way.seconds * micro_batches + way.sync_seconds for way in c.ways]
        curves.append(hull(sizes, costs).times(len(c.calls)))
    first, fits = together(curves), float(together(curves).at(_room(evaluator, budget)))
    return leader.step_seconds + max(0.0, fits - float(first.cost[-1]))


def _room(evaluator: Evaluator, budget: float) -> float:
    """Bytes for all terms but the runtime's and the margin."""
    runtime = evaluator.cluster.device.runtime_overhead_bytes
    return max((budget - runtime) / (1 + MARGIN), 1.0)


def blend(evaluator: Evaluator, group: Group, budget: int) -> Candidate | None:
    """The fastest mixture of a group's choices in the stages of its fastest member, or None where
    none fits."""
    leader = min(group, key=lambda c: (c.step_seconds, c.word, c.memory))
    bounds = leader.bounds
    classes = list(_classes(evaluator, group, bounds, leader.micro_batches))
    allowed, best = float(budget), None
    for _ in range(TRIES):
        room = _room(evaluator, allowed)
        counts = _counts(classes, group, leader.micro_batches, room)
        if counts is None:
            break
        made = _decisions(evaluator, group, classes, counts)
        candidate = evaluator.mixed(made, bounds, leader.micro_batches)
        if candidate is None:
            break
        fits = candidate.peak_bytes <= budget
        if fits and (best is None or candidate.step_seconds < best.step_seconds):
            best = candidate
        if fits and budget - candidate.peak_bytes < CLOSE * room:
            break
        allowed += budget - candidate.peak_bytes
    return best


def _classes(
    evaluator: Evaluator, group: Group, bounds: Sequence[int], micro_batches: int
) -> Iterator[Class]:
    entries = [_entries(evaluator, c) for c in group]
    for stage, (first, last) in enumerate(pairwise(bounds)):
        own = evaluator.own(first, last)
        for name in dict.fromkeys(evaluator.calls[i].function for i in own):
            calls = tuple(i for i in own if evaluator.calls[i].function == name)
            ways = []
            for candidate, prices in zip(group, entries, strict=True):
                assert prices is not None
                (strategy,) = candidate.strategies
                samples = evaluator.global_batch // strategy.batch_ways() // micro_batches
                sums = evaluator.sums(prices, first, last, strategy.inside, samples, calls)
                axes = evaluator.axes(strategy)
                forward, backward, _, sync = evaluator.times(sums, axes, micro_batches)
                waiting = evaluator.waiting(len(bounds) - 1, stage, micro_batches)
                terms = part_terms(
                    sums.bytes(evaluator.item), axes, evaluator.optimizer,
                    evaluator.entries.practice, waiting,
                )  # fmt: skip
                passing = tuple(terms.pop(term) for term in PASSING)
                n = len(calls)
                ways.append(Way((forward + backward) / n, sync / n, sum(terms.values()) / n, passing))
            yield Class(stage, calls, tuple(ways), any(evaluator.shares[i] for i in calls))


def _entries(evaluator: Evaluator, candidate: Candidate) -> list[Entry] | None:
    (decision,) = candidate.decisions
    batch = evaluator.global_batch // decision.strategy.batch_ways()
    return evaluator.entries_like(
        decision.strategy.inside, batch, candidate.micro_batches, decision.memory
    )


def _counts(
    classes: Sequence[Class], group: Group, micro_batches: int, bytes_: float
) -> list[list[int]] | None:
    """Counts of every class and choice. Classes that share parameters take one strategy: all are
    tried."""
    tied = any(c.tied for c in classes)
    best: tuple[float, list[list[int]]] | None = None
    for word in dict.fromkeys(c.word for c in group) if tied else [None]:
        total, found = 0.0, dict[int, list[int]]()
        for stage in dict.fromkeys(c.stage for c in classes):
            own = [(i, c) for i, c in enumerate(classes) if c.stage == stage]
            allowed = [
                tuple(w for w, choice in enumerate(group) if not c.tied or choice.word == word)
                for _, c in own
            ]
            made = _stage_counts([c for _, c in own], allowed, micro_batches, bytes_)
            if made is None:
                break
            total += made[0]
            found.update((i, counts) for (i, _), counts in zip(own, made[1], strict=True))
        else:
            if best is None or total < best[0]:
                best = total, [found[i] for i in range(len(classes))]
    return None if best is None else best[1]


def _stage_counts(
    classes: Sequence[Class],
    allowed: Sequence[tuple[int, ...]],
    micro_batches: int,
    bytes_: float,
) -> tuple[float, list[list[int]]] | None:
    """The least seconds of one stage in a step, and the counts that give it; seconds and bytes are
    scaled to about one."""
    model = mathopt.Model()
    unit = sum(
        len(c.calls) * max(w.seconds * micro_batches + w.sync_seconds for w in c.ways) for c in classes
    )
    worst = [model.add_variable(lb=0.0) for _ in PASSING]
    lasting, seconds, counts = [], [], []
    for c, usable in zip(classes, allowed, strict=True):
        own = {w: model.add_integer_variable(lb=0, ub=len(c.calls)) for w in usable}
        model.add_linear_constraint(mathopt.fast_sum(own.values()) == len(c.calls))
        counts.append(own)
        for w, count in own.items():
            way = c.ways[w]
            seconds.append((way.seconds * micro_batches + way.sync_seconds) / unit * count)
            lasting.append(way.lasting_bytes / bytes_ * count)
            if any(way.passing_bytes):
                used = model.add_binary_variable()
                model.add_linear_constraint(count <= len(c.calls) * used)
                for variable, amount in zip(worst, way.passing_bytes, strict=True):
                    model.add_linear_constraint(variable >= amount / bytes_ * used)
    model.add_linear_constraint(mathopt.fast_sum(lasting) + mathopt.fast_sum(worst) <= 1.0)
    model.minimize(mathopt.fast_sum(seconds))
    limits = mathopt.SolveParameters(relative_gap_tolerance=GAP)
    result = mathopt.solve(model, mathopt.SolverType.HIGHS, params=limits)
    if not result.has_primal_feasible_solution():
        return None
    values = result.variable_values()
    made = [
        [round(values[own[w]]) if w in own else 0 for w in range(len(c.ways))]
        for c, own in zip(classes, counts, strict=True)
    ]
    return result.objective_value() * unit, made


def _decisions(
    evaluator: Evaluator, group: Group, classes: Sequence[Class], counts: list[list[int]]
) -> tuple[Decision, ...]:
    """Layers of a class take the choices in order, so that equal ones are neighbours."""
    chosen: dict[int, int] = {}
    for c, own in zip(classes, counts, strict=True):
        order = [number for number, count in enumerate(own) for _ in range(count)]
        chosen.update(zip(c.calls, order, strict=True))
    usual = Counter(chosen.values()).most_common(1)[0][0]
    made: list[Decision] = []
    for i in range(len(evaluator.calls)):
        (own_decision,) = group[chosen.get(i, usual)].decisions
        strategy, memory = own_decision.strategy, own_decision.memory
        if made and (made[-1].strategy, made[-1].memory) == (strategy, memory):
            made[-1] = Decision(made[-1].first, i + 1, strategy, memory)
        else:
            made.append(Decision(i, i + 1, strategy, memory))
    return tuple(made)
