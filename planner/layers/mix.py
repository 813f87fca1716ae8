"""Several ways of running equal layers in one plan: how many layers take which.

Uniform candidates that split the devices alike (the same axes inside a replica of the batch, as many
replicas, stages and micro-batches) pass values between them for nothing. So layers of one function
in one stage are interchangeable, and what is left to choose are counts: an integer program of a few
dozen variables per stage. Stages meet only in the step's time, which grows with each one's time per
micro-batch and per step; each minimises the sum of both over a step, which is exact for one stage.

    stage 0   20 layers zero3, recompute │ 12 layers zero3, keep     fills the budget

Where a function is called so rarely that counts are coarse, a fraction of each of its weights may be cut
over zero3, the rest kept whole (`FRACTIONS`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

from msgspec.structs import replace

from ...cost_model.communication.data_parallel import BatchAxes
from ...cost_model.memory.peak import (
    MARGIN,
    Waiting,
    after_forward,
    between_calls,
    part_terms,
    worst,
)
from ...cost_model.pipeline.closed_form import beside_seconds
from ...ir.plan.flat_shard import WHOLE, Fraction
from ...ir.plan.plan import DIVIDED, HOSTED, Memory, Span
from ...ir.plan.strategy import Strategy
from ...ir.plan.workload import StageBytes
from ..candidate import Candidate, Decision, end_shares, pieces
from ..pricing.candidate_pricer import Evaluator
from ..pricing.function_prices import Entry
from .counts import Choice, Class, Counts, Kind, Way, best_counts, least_seconds

CLOSE = 0.01  # of the memory at hand: what is left is not worth another try
FRACTIONS: tuple[Fraction, ...] = ((3, 4), (1, 2), (1, 4))
RARE = 3  # calls of a function in a stage: of more, counts are as fine as fractions
TRIES = 6  # each with a budget put right by what the last one really needs: layers share bytes

Group = Sequence[Candidate]  # uniform candidates that split the devices alike


def groups(found: Sequence[Candidate]) -> list[list[Candidate]]:
    """Uniform candidates by how they split the devices, the group with the fastest member first; of each
    group those that nothing faster undercuts in memory."""
    made: dict[object, list[Candidate]] = {}
    for candidate in found:
        if len(candidate.decisions) > 1:
            continue
        (strategy,) = candidate.strategies
        key = (
            strategy.inside,
            strategy.batch_ways(),
            strategy.stages,
            candidate.micro_batches,
            candidate.chunks,
        )
        made.setdefault(key, []).append(candidate)
    useful = [_front(group) for group in made.values()]
    return sorted((g for g in useful if len(g) > 1), key=fastest)


def _front(group: Group) -> list[Candidate]:
    """Host memory and pieces help some functions and not others: they are judged among themselves."""
    kept: list[Candidate] = []
    least: dict[Memory | None, int] = {}
    for candidate in sorted(group, key=lambda c: (c.step_seconds, c.peak_bytes, c.word)):
        (decision,) = candidate.decisions
        kind = decision.memory if decision.memory in (*HOSTED, *DIVIDED) else None
        if kind not in least or candidate.peak_bytes < least[kind]:
            least[kind] = candidate.peak_bytes
            kept.append(candidate)
    return kept


def fastest(group: Group) -> float:
    """No blend of a group is faster than this."""
    return min(candidate.step_seconds for candidate in group)


class Mixture:
    """What may be mixed: the choices of a group, in the stages of its fastest member, and for calls of
    rare functions `fractions` of those of them that cut parameters."""

    def __init__(
        self, evaluator: Evaluator, group: Group, fractions: Sequence[Fraction] = FRACTIONS
    ) -> None:
        self.evaluator, self.group = evaluator, group
        self.choices: list[Choice] = [(d.strategy, d.memory) for c in group for d in c.decisions]
        self.choices += [
            (replace(strategy, fraction=fraction), memory)
            for strategy, memory in self.choices
            for fraction in (fractions if strategy.divisible and strategy.fraction == WHOLE else ())
        ]
        self.leader = min(group, key=lambda c: (c.step_seconds, c.word, c.memory))
        self.micro_batches = self.leader.micro_batches
        self.chunks = self.leader.chunks
        dealt = pieces(self.leader.bounds, self.chunks)
        self.stages = [tuple(evaluator.sums.own(own)) for own in dealt]
        self.entries = [self.prices(*choice) for choice in self.choices]
        leading = self.entries[group.index(self.leader)]
        self.ends = end_shares(evaluator.prices.seconds(leading), dealt)
        parts: dict[object, list[_Part]] = {}
        kinds: dict[object, Kind] = {}
        self.kinds = []
        for number, own in enumerate(dealt):
            face = tuple(
                (tuple(evaluator.alike[first:last]), last == len(evaluator.calls))
                for first, last in own
            )
            saved = evaluator.sums.saved(leading, own)
            waiting = evaluator.waiting(len(dealt), number, self.micro_batches, saved)
            if face not in parts:
                parts[face] = list(self.parts(own))
            if (face, waiting) not in kinds:
                kinds[face, waiting] = tuple(self.classes(parts[face], waiting))
            self.kinds.append(kinds[face, waiting])

    def prices(self, strategy: Strategy, memory: Memory) -> list[Entry]:
        batch = self.evaluator.global_batch // strategy.batch_ways()
        found = self.evaluator.prices.like(strategy.inside, batch, self.micro_batches, memory)
        assert found is not None
        return found

    def parts(self, stage: tuple[Span, ...]) -> Iterator[_Part]:
        """The calls of a stage by function, added up and timed under every choice."""
        evaluator, own = self.evaluator, self.evaluator.sums.own(stage)
        for name in dict.fromkeys(evaluator.calls[i].function for i in own):
            calls = [i for i in own if evaluator.calls[i].function == name]
            summed = []
            for number, (strategy, _) in enumerate(self.choices):
                if strategy.fraction != WHOLE and len(calls) > RARE:
                    continue
                prices = self.entries[number]
                samples = evaluator.global_batch // strategy.batch_ways() // self.micro_batches
                sums = evaluator.sums.of(prices, stage, strategy.inside, samples, calls)
                axes = evaluator.axes(strategy)
                forward, backward, _, sync = evaluator.times(sums, axes, self.micro_batches)
                summed.append((number, sums.bytes(evaluator.item), axes, forward + backward, sync))
            yield _Part(name, calls, summed)

    def classes(self, parts: Sequence[_Part], waiting: float) -> Iterator[Class]:
        evaluator = self.evaluator
        for name, calls, summed in parts:
            ways, n = [], len(calls)
            for _, amounts, axes, seconds, sync in summed:
                practice = evaluator.entries.practice
                stages = Waiting(waiting, self.micro_batches, self.chunks)
                idle = between_calls(amounts, axes, practice, stages)
                busy = worst(amounts, axes, practice, stages, evaluator.cluster.device)
                most, least = (
                    sum(part_terms(amounts, axes, evaluator.optimizer, practice, m).values()) / n
                    for m in (idle, after_forward(amounts, axes, practice, stages))
                )
                passing, host = max(sum(busy) - sum(idle), 0), waiting * amounts.host / n
                ways.append(Way(seconds / n, sync / n, least, most, host, passing))
            tied = any(evaluator.sums.shares[i] for i in calls)
            yield Class(name, n, tuple(ways), tied, tuple(number for number, *_ in summed))

    def floor(self, budget: int) -> float:
        """Seconds that no blend within the budget is below: every stage keeps it as if layers could
        be cut, one of them has to synchronise, and a first micro-batch passes the pieces of others."""
        room = _room(self.evaluator, budget)
        found = {kind: least_seconds(kind, self.micro_batches, room) for kind in set(self.kinds)}
        busy = [found[kind][0] for kind in self.kinds]
        beside = beside_seconds(busy, self.ends)
        least = max(found[kind][1] + other for kind, other in zip(self.kinds, beside, strict=True))
        # ranks that wait leave their processors to others
        return least / self.evaluator.cluster.device.ranks_per_processor

    def best(self, budget: int, others: float) -> Candidate | None:
        """The fastest mixture or member, or None where none fits; it needs not be found where `others`
        seconds are less. Fractions are tried where all functions are rare, or some are and whole
        weights leave memory unused."""
        best = self.filled(budget, others, self.choices[: len(self.group)])
        rare = [len(c.choices) > len(self.group) for kind in set(self.kinds) for c in kind]
        if best is None or not any(rare):
            return best
        unused = budget - best.peak_bytes >= CLOSE * _room(self.evaluator, budget)
        if all(rare) or unused:
            finer = self.filled(budget, others, self.choices)
            best = min(best, finer or best, key=lambda c: c.step_seconds)
        return best

    def filled(self, budget: int, others: float, choices: Sequence[Choice]) -> Candidate | None:
        """The fastest mixture of these choices, or member. Another try wins no larger a share of the
        time than is left of the memory; as long as none fits each goes back twice as far."""
        fitting = [c for c in self.group if c.peak_bytes <= budget]
        best = min(fitting, key=lambda c: c.step_seconds, default=None)
        allowed, span, last, back = budget + self.beyond(budget), (0.0, inf), None, 1
        for _ in range(TRIES):
            room, host = (
                _room(self.evaluator, allowed),
                self.evaluator.cluster.device.host_memory_bytes,
            )
            counts = best_counts(self.kinds, choices, self.micro_batches, (room, host))
            candidate = None if counts is None else self.mixed(counts)
            left = 0 if candidate is None else budget - candidate.peak_bytes
            if candidate is not None and left >= 0:
                best = min(best or candidate, candidate, key=lambda c: c.step_seconds)
                slow = candidate.step_seconds * (1 - left / room) >= others
                if slow or left < CLOSE * room or (counts == last and span[1] == inf):
                    break
            allowed, span, last = *_next(allowed, span, left * back), counts
            back = 1 if span[0] else 2 * back
            if allowed == inf:
                break
        return best

    def mixed(self, counts: Sequence[Counts]) -> Candidate | None:
        made = self.decisions(counts)
        bounds, micro_batches = self.leader.bounds, self.micro_batches
        return self.evaluator.mixed(made, bounds, micro_batches, self.chunks)

    def beyond(self, budget: int) -> float:
        """Bytes that sums over classes count too much, where all layers take one choice that fits."""
        device = self.evaluator.cluster.device
        number, leader = max(
            enumerate(self.group), key=lambda c: (c[1].peak_bytes <= budget, c[1].peak_bytes)
        )
        held = max(
            sum(c.members * c.ways[number].lasting_bytes for c in kind)
            + max(c.ways[number].passing_bytes for c in kind)
            for kind in set(self.kinds)
        )
        return held * (1 + MARGIN) + device.runtime_overhead_bytes - leader.peak_bytes

    def decisions(self, counts: Sequence[Counts]) -> tuple[Decision, ...]:
        """Layers of a class take the choices in order, so that equal ones are neighbours."""
        calls, chosen = self.evaluator.calls, dict[int, int]()
        for stage, kind, own in zip(self.stages, self.kinds, counts, strict=True):
            for c, taken in zip(kind, own, strict=True):
                members = (i for i in stage if calls[i].function == c.function)
                order = (c.choices[way] for way, count in enumerate(taken) for _ in range(count))
                chosen.update(zip(members, order, strict=True))
        usual = Counter(chosen.values()).most_common(1)[0][0]
        made: list[Decision] = []
        for i in range(len(calls)):
            strategy, memory = self.choices[chosen.get(i, usual)]
            if made and (made[-1].strategy, made[-1].memory) == (strategy, memory):
                made[-1] = Decision(made[-1].first, i + 1, strategy, memory)
            else:
                made.append(Decision(i, i + 1, strategy, memory))
        return tuple(made)


def _next(
    allowed: float, span: tuple[float, float], left: float
) -> tuple[float, tuple[float, float]]:
    """The budget to try next where so many bytes were `left`, and the span that it lies in: put right
    by them, or half-way where that is known to be too little or too much."""
    low, high = (allowed, span[1]) if left >= 0 else (span[0], allowed)
    there = allowed + left
    return there if low < there < high else (low + high) / 2, (low, high)


class _Part(NamedTuple):
    """Calls of one function in a stage, and for every choice: number, bytes, axes, seconds, and of
    sync."""

    function: str
    calls: list[int]
    summed: list[tuple[int, StageBytes, BatchAxes, float, float]]


def _room(evaluator: Evaluator, budget: float) -> float:
    """Bytes for all terms but the runtime's and the margin."""
    runtime = evaluator.cluster.device.runtime_overhead_bytes
    return max((budget - runtime) / (1 + MARGIN), 1.0)
