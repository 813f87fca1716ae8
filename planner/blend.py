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
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import NamedTuple

from ortools.math_opt.python import mathopt

from ..cost_model.batch_axes import BatchAxes
from ..cost_model.memory import MARGIN, Waiting, after_forward, between_calls, part_terms, worst
from ..cost_model.pipeline import beside_seconds
from ..ir.amounts import StageBytes
from ..ir.plan import DIVIDED, HOSTED, Memory, Span
from .candidate import Candidate, Decision, end_shares, pieces
from .entries import Entry
from .evaluate import Evaluator
from .layered.relaxation import Curve, hull, together

GAP = 1e-4  # relative, of the integer program
CLOSE = 0.01  # of the memory at hand: what is left is not worth another try
TRIES = 6  # each with a budget put right by what the last one really needs: layers share bytes


class Way(NamedTuple):
    """One call of a class under one choice: seconds per micro-batch and per step, bytes that add up
    over calls, at least and at most, on the device and in its host's memory, and bytes of which the
    worst call counts."""

    seconds: float
    sync_seconds: float
    least_bytes: float
    lasting_bytes: float
    host_bytes: float
    passing_bytes: float


class Class(NamedTuple):
    """Calls of one function in a stage, how many, and a way of running them for every choice."""

    function: str
    members: int
    ways: tuple[Way, ...]
    tied: bool


Kind = tuple[Class, ...]  # the classes of a stage; equal stages have one between them
Counts = list[list[int]]  # of every class and choice
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
            strategy.inside, strategy.batch_ways(), strategy.stages, candidate.micro_batches,
            candidate.chunks,
        )  # fmt: skip
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
    """What may be mixed: the choices of a group, in the stages of its fastest member."""

    def __init__(self, evaluator: Evaluator, group: Group) -> None:
        self.evaluator, self.group = evaluator, group
        self.leader = min(group, key=lambda c: (c.step_seconds, c.word, c.memory))
        self.micro_batches = self.leader.micro_batches
        self.chunks = self.leader.chunks
        dealt = pieces(self.leader.bounds, self.chunks)
        self.stages = [tuple(evaluator.sums.own(own)) for own in dealt]
        self.entries = [self.prices(candidate) for candidate in group]
        leading = self.entries[group.index(self.leader)]
        self.ends = end_shares(evaluator.prices.seconds(leading), dealt)
        parts: dict[object, list[_Part]] = {}
        kinds: dict[object, Kind] = {}
        self.kinds = []
        for number, own in enumerate(dealt):
            face = tuple(
                (tuple(evaluator.alike[first:last]), last == len(evaluator.calls)) for first, last in own
            )
            saved = evaluator.sums.saved(leading, own)
            waiting = evaluator.waiting(len(dealt), number, self.micro_batches, saved)
            if face not in parts:
                parts[face] = list(self.parts(own))
            if (face, waiting) not in kinds:
                kinds[face, waiting] = tuple(self.classes(parts[face], waiting))
            self.kinds.append(kinds[face, waiting])

    def prices(self, candidate: Candidate) -> list[Entry]:
        (decision,) = candidate.decisions
        batch = self.evaluator.global_batch // decision.strategy.batch_ways()
        word, memory = decision.strategy.inside, decision.memory
        found = self.evaluator.prices.like(word, batch, candidate.micro_batches, memory)
        assert found is not None
        return found

    def parts(self, stage: tuple[Span, ...]) -> Iterator[_Part]:
        """The calls of a stage by function, added up and timed under every choice."""
        evaluator, own = self.evaluator, self.evaluator.sums.own(stage)
        for name in dict.fromkeys(evaluator.calls[i].function for i in own):
            calls = [i for i in own if evaluator.calls[i].function == name]
            summed = []
            for candidate, prices in zip(self.group, self.entries, strict=True):
                (strategy,) = candidate.strategies
                samples = evaluator.global_batch // strategy.batch_ways() // self.micro_batches
                sums = evaluator.sums.of(prices, stage, strategy.inside, samples, calls)
                axes = evaluator.axes(strategy)
                forward, backward, _, sync = evaluator.times(sums, axes, self.micro_batches)
                summed.append((sums.bytes(evaluator.item), axes, forward + backward, sync))
            yield _Part(name, calls, summed)

    def classes(self, parts: Sequence[_Part], waiting: float) -> Iterator[Class]:
        evaluator = self.evaluator
        for name, calls, summed in parts:
            ways, n = [], len(calls)
            for amounts, axes, seconds, sync in summed:
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
            yield Class(name, n, tuple(ways), any(evaluator.sums.shares[i] for i in calls))

    def floor(self, budget: int) -> float:
        """Seconds that no blend within the budget is below: every stage keeps it as if layers could
        be cut, one of them has to synchronise, and a first micro-batch passes the pieces of others."""
        room = _room(self.evaluator, budget)
        found = {kind: _least(kind, self.micro_batches, room) for kind in set(self.kinds)}
        busy = [found[kind][0] for kind in self.kinds]
        beside = beside_seconds(busy, self.ends)
        least = max(
            found[kind][1] + other for kind, other in zip(self.kinds, beside, strict=True)
        )
        # ranks that wait leave their processors to others
        return least / self.evaluator.cluster.device.ranks_per_processor

    def best(self, budget: int, others: float) -> Candidate | None:
        """The fastest mixture or member, or None where none fits; it needs not be found where `others`
        seconds are less. Another try wins no larger a share of the time than is left of the memory."""
        fitting = [c for c in self.group if c.peak_bytes <= budget]
        best = min(fitting, key=lambda c: c.step_seconds, default=None)
        allowed, span, last = budget + self.beyond(budget), (0.0, inf), None
        for _ in range(TRIES):
            room, host = _room(self.evaluator, allowed), self.evaluator.cluster.device.host_memory_bytes
            counts = _counts(self.kinds, self.group, self.micro_batches, (room, host))
            candidate = None if counts is None else self.mixed(counts)
            left = 0 if candidate is None else budget - candidate.peak_bytes
            if candidate is not None and left >= 0:
                best = min(best or candidate, candidate, key=lambda c: c.step_seconds)
                slow = candidate.step_seconds * (1 - left / room) >= others
                if slow or left < CLOSE * room or (counts == last and span[1] == inf):
                    break
            allowed, span, last = *_next(allowed, span, left), counts
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
                order = (number for number, count in enumerate(taken) for _ in range(count))
                chosen.update(zip(members, order, strict=True))
        usual = Counter(chosen.values()).most_common(1)[0][0]
        made: list[Decision] = []
        for i in range(len(calls)):
            (own_decision,) = self.group[chosen.get(i, usual)].decisions
            strategy, memory = own_decision.strategy, own_decision.memory
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
    """Calls of one function in a stage, and for every choice: bytes, axes, seconds, and of sync."""

    function: str
    calls: list[int]
    summed: list[tuple[StageBytes, BatchAxes, float, float]]


def _least(kind: Kind, micro_batches: int, room: float) -> tuple[float, float]:
    """Seconds that a stage takes at least if layers could be cut: of a micro-batch, of a step."""

    def curve(cost: Callable[[Way], float]) -> Curve:
        return together(
            hull([w.least_bytes for w in c.ways], [cost(w) for w in c.ways]).times(c.members)
            for c in kind
        )

    once = curve(lambda w: w.seconds)
    step = curve(lambda w: w.seconds * micro_batches + w.sync_seconds)
    return float(once.at(room)), float(step.at(room))


def _room(evaluator: Evaluator, budget: float) -> float:
    """Bytes for all terms but the runtime's and the margin."""
    runtime = evaluator.cluster.device.runtime_overhead_bytes
    return max((budget - runtime) / (1 + MARGIN), 1.0)


def _counts(
    kinds: Sequence[Kind], group: Group, micro_batches: int, limits: tuple[float, float]
) -> list[Counts] | None:
    """Counts for every stage. Classes that share parameters take one strategy: all are tried."""
    tied = any(c.tied for kind in kinds for c in kind)
    best: tuple[float, list[Counts]] | None = None
    for word in dict.fromkeys(c.word for c in group) if tied else [None]:
        found: dict[Kind, tuple[float, Counts] | None] = {}
        for kind in dict.fromkeys(kinds):
            allowed = [
                tuple(w for w, choice in enumerate(group) if not c.tied or choice.word == word)
                for c in kind
            ]
            found[kind] = _stage_counts(kind, allowed, micro_batches, limits)
            if found[kind] is None:
                break
        solved = [made for made in map(found.get, kinds) if made is not None]
        total = sum(seconds for seconds, _ in solved)
        if len(solved) == len(kinds) and (best is None or total < best[0]):
            best = total, [counts for _, counts in solved]
    return None if best is None else best[1]


def _fastest(
    classes: Kind, allowed: Sequence[tuple[int, ...]], micro_batches: int, limits: tuple[float, float]
) -> tuple[float, Counts] | None:
    """All calls run the fastest way, if that fits."""

    def seconds(way: Way) -> float:
        return way.seconds * micro_batches + way.sync_seconds

    def first(ways: Sequence[Way], usable: tuple[int, ...]) -> int:
        return min(usable, key=lambda w: (seconds(ways[w]), ways[w].lasting_bytes))

    taken = [first(c.ways, own) for c, own in zip(classes, allowed, strict=True)]
    ways = [(c.members, c.ways[w]) for c, w in zip(classes, taken, strict=True)]
    held = sum(n * w.lasting_bytes for n, w in ways) + max(w.passing_bytes for _, w in ways)
    if held > limits[0] or sum(n * w.host_bytes for n, w in ways) > limits[1]:
        return None
    counts = [
        [c.members * (w == one) for w in range(len(c.ways))]
        for c, one in zip(classes, taken, strict=True)
    ]
    return sum(n * seconds(w) for n, w in ways), counts


def _stage_counts(
    classes: Kind,
    allowed: Sequence[tuple[int, ...]],
    micro_batches: int,
    limits: tuple[float, float],
) -> tuple[float, Counts] | None:
    """The least seconds of one stage in a step within the bytes of a device and of its host, and the
    counts that give it; seconds and bytes are scaled to about one."""
    fastest = _fastest(classes, allowed, micro_batches, limits)
    if fastest is not None:
        return fastest
    model, (bytes_, host_bytes) = mathopt.Model(), limits
    unit = sum(
        c.members * max(w.seconds * micro_batches + w.sync_seconds for w in c.ways) for c in classes
    )
    most = model.add_variable(lb=0.0)
    lasting, hosted, seconds, counts = [], [], [], []
    for c, usable in zip(classes, allowed, strict=True):
        own = {w: model.add_integer_variable(lb=0, ub=c.members) for w in usable}
        model.add_linear_constraint(mathopt.fast_sum(own.values()) == c.members)
        counts.append(own)
        for w, count in own.items():
            way = c.ways[w]
            seconds.append((way.seconds * micro_batches + way.sync_seconds) / unit * count)
            lasting.append(way.lasting_bytes / bytes_ * count)
            if way.host_bytes:
                hosted.append(way.host_bytes / max(host_bytes, 1.0) * count)
            if way.passing_bytes:
                used = model.add_binary_variable()
                model.add_linear_constraint(count <= c.members * used)
                model.add_linear_constraint(most >= way.passing_bytes / bytes_ * used)
    model.add_linear_constraint(mathopt.fast_sum(lasting) + most <= 1.0)
    model.add_linear_constraint(mathopt.fast_sum(hosted) <= 1.0)
    model.minimize(mathopt.fast_sum(seconds))
    close = mathopt.SolveParameters(relative_gap_tolerance=GAP)
    result = mathopt.solve(model, mathopt.SolverType.HIGHS, params=close)
    if not result.has_primal_feasible_solution():
        return None
    values = result.variable_values()
    made = [
        [round(values[own[w]]) if w in own else 0 for w in range(len(c.ways))]
        for c, own in zip(classes, counts, strict=True)
    ]
    return result.objective_value() * unit, made
