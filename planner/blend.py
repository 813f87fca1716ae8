"""Several ways of running equal layers in one plan: how many layers take which, exactly.

Uniform candidates that split the devices alike (the same axes inside a replica of the batch, as many
replicas, stages and micro-batches) pass values between them for nothing. So layers of one function
in one stage are interchangeable, and what is left to choose are counts: an integer program of a few
dozen variables, with the pipeline's own objective and the memory of every stage.

    stage 0   20 layers zero3, recompute │ 12 layers zero3, keep     fills the budget
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec
from ortools.math_opt.python import mathopt

from ..cost_model.batch_axes import BatchAxes
from ..cost_model.memory import MARGIN, PASSING, micro_batches_in_flight, part_terms
from ..cost_model.pipeline import boundary_seconds
from .decision import Decision
from .evaluate import Candidate, Evaluator

GAP = 1e-4  # relative, of the integer program
TRIES = 3  # with a smaller budget each, where bytes that layers share were counted wrongly


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
    """Candidates by how they split the devices, the group with the fastest member first."""
    made: dict[object, list[Candidate]] = {}
    for candidate in found:
        (strategy,) = candidate.strategies
        key = (strategy.inside, strategy.batch_ways(), strategy.stages, candidate.micro_batches)
        made.setdefault(key, []).append(candidate)
    return sorted((g for g in made.values() if len(g) > 1), key=fastest)


def fastest(group: Group) -> float:
    """No blend of a group is faster than this."""
    return min(candidate.step_seconds for candidate in group)


def blend(evaluator: Evaluator, group: Group, budget: int) -> Candidate | None:
    """The fastest mixture of a group's choices in the stages of its fastest member, or None where
    none fits."""
    leader = min(group, key=lambda c: (c.step_seconds, c.word, c.memory))
    bounds = [*(s.first for s in leader.stages), leader.stages[-1].last]
    classes = list(_classes(evaluator, group, bounds, leader.micro_batches))
    allowed = budget
    for _ in range(TRIES):
        counts = _Counts(evaluator, leader, group, classes, allowed).solve()
        if counts is None:
            return None
        made = _decisions(evaluator, group, classes, counts)
        candidate = evaluator.mixed(made, bounds, leader.micro_batches)
        if candidate is None or candidate.peak_bytes <= budget:
            return candidate
        allowed -= candidate.peak_bytes - budget
    return None


def _classes(
    evaluator: Evaluator, group: Group, bounds: Sequence[int], micro_batches: int
) -> Iterator[Class]:
    entries = [evaluator.entries_of(c.decisions, micro_batches) for c in group]
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
                axes = BatchAxes(strategy, evaluator.cluster, evaluator.gradient_scale)
                forward, backward, _, sync = evaluator.times(sums, axes, micro_batches)
                after = len(bounds) - 2 - stage
                waiting = micro_batches_in_flight(after, len(bounds) - 1, micro_batches, 1)
                terms = part_terms(
                    sums.bytes(evaluator.item), axes, evaluator.optimizer,
                    evaluator.entries.practice, waiting,
                )  # fmt: skip
                passing = tuple(terms.pop(term) for term in PASSING)
                n = len(calls)
                ways.append(Way((forward + backward) / n, sync / n, sum(terms.values()) / n, passing))
            yield Class(stage, calls, tuple(ways), any(evaluator.shares[i] for i in calls))


class _Counts:
    """The integer program; seconds and bytes are scaled to about one."""

    def __init__(
        self,
        evaluator: Evaluator,
        leader: Candidate,
        group: Group,
        classes: Sequence[Class],
        budget: int,
    ) -> None:
        self.leader, self.group, self.classes = leader, group, classes
        self.model = mathopt.Model()
        self.counts = [
            [self.model.add_integer_variable(lb=0, ub=len(c.calls)) for _ in c.ways] for c in classes
        ]
        for own, c in zip(self.counts, classes, strict=True):
            self.model.add_linear_constraint(mathopt.fast_sum(own) == len(c.calls))
        self.tie()
        runtime = evaluator.cluster.device.runtime_overhead_bytes
        self.unit_bytes = max((budget - runtime) / (1 + MARGIN), 1.0)
        for stage in range(len(leader.stages)):
            self.memory(stage)
        self.objective(evaluator)

    def members(self, stage: int) -> list[tuple[mathopt.Variable, Way, int]]:
        return [
            (count, way, len(c.calls))
            for own, c in zip(self.counts, self.classes, strict=True)
            if c.stage == stage
            for count, way in zip(own, c.ways, strict=True)
        ]

    def tie(self) -> None:
        """Classes that share parameters take one strategy, each as a whole."""
        words = [c.word for c in self.group]
        chosen = {w: self.model.add_binary_variable() for w in dict.fromkeys(words)}
        for own, c in zip(self.counts, self.classes, strict=True):
            for word, one in chosen.items() if c.tied else ():
                mine = [n for n, w in zip(own, words, strict=True) if w == word]
                self.model.add_linear_constraint(mathopt.fast_sum(mine) == len(c.calls) * one)

    def memory(self, stage: int) -> None:
        members = self.members(stage)
        worst = [self.model.add_variable(lb=0.0) for _ in PASSING]
        for count, way, most in members:
            if any(way.passing_bytes):
                used = self.model.add_binary_variable()
                self.model.add_linear_constraint(count <= most * used)
                for variable, amount in zip(worst, way.passing_bytes, strict=True):
                    self.model.add_linear_constraint(variable >= amount / self.unit_bytes * used)
        lasting = mathopt.fast_sum(
            way.lasting_bytes / self.unit_bytes * count for count, way, _ in members
        )
        self.model.add_linear_constraint(lasting + mathopt.fast_sum(worst) <= 1.0)

    def objective(self, evaluator: Evaluator) -> None:
        """The time of 1F1B as `cost_model.pipeline` has it: all stages once, then periods."""
        leader, unit = self.leader, self.leader.step_seconds
        sends = boundary_seconds(
            [s.transfer_bytes for s in leader.stages],
            evaluator.cluster.devices // len(leader.stages),
            evaluator.cluster,
        )
        busy = [
            mathopt.fast_sum(way.seconds / unit * count for count, way, _ in self.members(stage))
            for stage in range(len(leader.stages))
        ]
        period, sync = self.model.add_variable(lb=0.0), self.model.add_variable(lb=0.0)
        loop = 0.0
        for length in range(1, len(busy) + 1):
            stage = len(busy) - length
            self.model.add_linear_constraint(period >= busy[stage])
            loop += 2 * sends[stage] / unit
            behind = mathopt.fast_sum(busy[stage:])
            if not evaluator.entries.practice.overlap:
                self.model.add_linear_constraint(length * period >= behind + loop)
            here = self.members(stage)
            self.model.add_linear_constraint(
                sync >= mathopt.fast_sum(way.sync_seconds / unit * count for count, way, _ in here)
            )
        again = (leader.micro_batches - 1) * period
        self.model.minimize(mathopt.fast_sum(busy) + again + sync)

    def solve(self) -> list[list[int]] | None:
        limits = mathopt.SolveParameters(relative_gap_tolerance=GAP)
        result = mathopt.solve(self.model, mathopt.SolverType.HIGHS, params=limits)
        if not result.has_primal_feasible_solution():
            return None
        values = result.variable_values()
        return [[round(values[n]) for n in own] for own in self.counts]


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
