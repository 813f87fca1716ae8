"""How many calls of each class of a stage run which way: an integer program of a few dozen variables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple

from ortools.math_opt.python import mathopt

from ...ir.plan.flat_shard import WHOLE
from ...ir.plan.plan import Memory
from ...ir.plan.strategy import Strategy
from .relaxation import Curve, hull, together

GAP = 1e-4  # relative, of the integer program
GAIN = (
    1e-3  # of the seconds: what another solution for a fraction of shared parameters has to promise
)


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
    """Calls of one function in a stage, how many, and the ways of running them: one for every choice
    that they have, of which `choices` are the numbers."""

    function: str
    members: int
    ways: tuple[Way, ...]
    tied: bool
    choices: tuple[int, ...]


Kind = tuple[Class, ...]  # the classes of a stage; equal stages have one between them
Counts = list[list[int]]  # of every class and way
Choice = tuple[Strategy, Memory]
Allowed = Sequence[tuple[int, ...]]  # the ways that each class may run


def best_counts(
    kinds: Sequence[Kind],
    choices: Sequence[Choice],
    micro_batches: int,
    limits: tuple[float, float],
) -> list[Counts] | None:
    """Counts for every stage, in the least seconds within the bytes of a device and of its host; None
    where nothing fits. Classes that share parameters take one strategy: all are tried, in the order of
    what they take at least, as long as that is less than the best; fractions last."""
    different = Counter(kinds)
    tied = any(c.tied for kind in different for c in kind)
    tried: list[tuple[bool, float, int, dict[Kind, list[tuple[int, ...]]]]] = []
    for word in dict.fromkeys(strategy for strategy, _ in choices) if tied else [None]:
        allowed = {kind: [_allowed(c, choices, word) for c in kind] for kind in different}
        if all(usable for own in allowed.values() for usable in own):
            least = [
                n * _least(k, allowed[k], micro_batches, limits[0]) for k, n in different.items()
            ]
            part = word is not None and word.fraction != WHOLE
            tried.append((part, sum(least), len(tried), allowed))
    best, made = inf, list[Counts]()
    for part, bound, _, allowed in sorted(tried, key=lambda item: item[:3]):
        below = best * (1 - GAIN * part)
        if bound >= below:
            continue
        total, found = _solved(different, allowed, micro_batches, limits, below)
        if total < best:
            best, made = total, [found[kind] for kind in kinds]
    return made or None


def _solved(
    different: Mapping[Kind, int],
    allowed: Mapping[Kind, Allowed],
    micro_batches: int,
    limits: tuple[float, float],
    below: float,
) -> tuple[float, dict[Kind, Counts]]:
    """The seconds of all stages, and their counts; infinite where one does not fit or they would not
    be less than `below`."""
    total, found = 0.0, dict[Kind, Counts]()
    for kind, number in different.items():
        made = _stage_counts(kind, allowed[kind], micro_batches, limits, (below - total) / number)
        if made is None:
            return inf, {}
        total, found[kind] = total + number * made[0], made[1]
    return total, found


def _allowed(c: Class, choices: Sequence[Choice], word: Strategy | None) -> tuple[int, ...]:
    """The different ways of a class where there are these choices, and those that share parameters take
    one strategy."""
    found: dict[Way, int] = {}
    for way, number in enumerate(c.choices):
        if number < len(choices) and (not c.tied or choices[number][0] == word):
            found.setdefault(c.ways[way], way)
    return tuple(found.values())


def least_seconds(kind: Kind, micro_batches: int, room: float) -> tuple[float, float]:
    """Seconds that a stage takes at least if layers could be cut: of a micro-batch, of a step."""
    sizes = [(c.members, c.ways, [w.least_bytes for w in c.ways]) for c in kind]
    once = _curve(sizes, lambda w: w.seconds)
    step = _curve(sizes, lambda w: w.seconds * micro_batches + w.sync_seconds)
    return float(once.at(room)), float(step.at(room))


def _least(kind: Kind, allowed: Allowed, micro_batches: int, room: float) -> float:
    """Seconds of a step that no counts of these ways are below: one call of each class is the worst."""
    ways = [[c.ways[way] for way in own] for c, own in zip(kind, allowed, strict=True)]
    sizes = [
        (c.members, own, [w.lasting_bytes for w in own]) for c, own in zip(kind, ways, strict=True)
    ]
    passing = max(min(w.passing_bytes for w in own) for own in ways)
    curve = _curve(sizes, lambda w: w.seconds * micro_batches + w.sync_seconds)
    return float(curve.at(room - passing))


def _curve(
    sizes: Iterable[tuple[int, Sequence[Way], list[float]]], cost: Callable[[Way], float]
) -> Curve:
    """The least cost over bytes of classes: members, their ways, and the bytes of each."""
    return together(
        hull(own, [cost(w) for w in ways]).times(members) for members, ways, own in sizes
    )


def _fastest(
    classes: Kind, allowed: Allowed, micro_batches: int, limits: tuple[float, float]
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
    classes: Kind, allowed: Allowed, micro_batches: int, limits: tuple[float, float], below: float
) -> tuple[float, Counts] | None:
    """The least seconds of one stage in a step within the bytes of a device and of its host, and the
    counts that give it, if less than `below`; seconds and bytes are scaled to about one."""
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
    total = mathopt.fast_sum(seconds)
    if below < inf:
        model.add_linear_constraint(total <= below / unit)
    model.minimize(total)
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
