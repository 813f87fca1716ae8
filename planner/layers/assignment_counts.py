"""How many calls of each class of a stage take which choice: an integer program.

It has a few dozen variables per stage, since equal calls are counted and not told apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple

from ...ir.plan.flat_shard import FULL
from ...ir.plan.memory_action import MemoryAction
from ...ir.plan.strategy import Strategy
from ..solvers.linear_program import Linear, LinearProgram, Variable, total
from .relaxation import CostCurve, hull, sum_curves

GAP = 1e-4  # relative, of the integer program
GAIN = (
    1e-3  # of the seconds: what another solution for a fraction of shared parameters has to promise
)


class LayerChoice(NamedTuple):
    """What a layer may take."""

    strategy: Strategy
    memory: MemoryAction


class CallCost(NamedTuple):
    """Cost of one call of a class under one choice.

    Seconds per micro-batch and per step; bytes that add up over calls, at least and at most, on the
    device and in host memory; `passing_bytes`: extra bytes at the peak, which count for one call.
    """

    seconds: float
    sync_seconds: float
    least_bytes: float
    lasting_bytes: float
    host_bytes: float
    passing_bytes: float


class CallClass(NamedTuple):
    """Interchangeable calls of one function in a stage, and the cost of one under each choice.

    `choice_numbers`: positions of `costs` in the list of all choices.
    """

    function: str
    call_count: int
    costs: tuple[CallCost, ...]
    shares_parameters: bool
    choice_numbers: tuple[int, ...]


StageSignature = tuple[CallClass, ...]  # classes of a stage; equal stages share it
AssignmentCounts = list[list[int]]  # calls by class and cost
Allowed = Sequence[tuple[int, ...]]  # indices of the costs that each class may take


def best_counts(
    signatures: Sequence[StageSignature],
    choices: Sequence[LayerChoice],
    micro_batches: int,
    limits: tuple[float, float],
) -> list[AssignmentCounts] | None:
    """Counts for every stage that minimise seconds within the bytes of a device and of its host.

    None where nothing fits. Classes that share parameters take one strategy: all are tried in order
    of their lower bounds until these exceed the best; fractions of weights come last.
    """
    distinct = Counter(signatures)
    tied = any(c.shares_parameters for signature in distinct for c in signature)
    assignments: list[tuple[bool, float, int, dict[StageSignature, list[tuple[int, ...]]]]] = []
    for strategy in dict.fromkeys(strategy for strategy, _ in choices) if tied else [None]:
        allowed = {
            signature: [_allowed(c, choices, strategy) for c in signature] for signature in distinct
        }
        if all(
            allowed_indices
            for allowed_of_class in allowed.values()
            for allowed_indices in allowed_of_class
        ):
            lower_bounds = [
                n * _least(k, allowed[k], micro_batches, limits[0]) for k, n in distinct.items()
            ]
            fractioned = strategy is not None and strategy.fraction != FULL
            assignments.append((fractioned, sum(lower_bounds), len(assignments), allowed))
    best, best_of = inf, list[AssignmentCounts]()
    for fractioned, bound, _, allowed in sorted(assignments, key=lambda item: item[:3]):
        limit_seconds = best * (1 - GAIN * fractioned)
        if bound >= limit_seconds:
            continue
        seconds, counts_by_signature = _solved(
            distinct, allowed, micro_batches, limits, limit_seconds
        )
        if seconds < best:
            best, best_of = seconds, [counts_by_signature[signature] for signature in signatures]
    return best_of or None


def _solved(
    distinct: Mapping[StageSignature, int],
    allowed: Mapping[StageSignature, Allowed],
    micro_batches: int,
    limits: tuple[float, float],
    limit_seconds: float,
) -> tuple[float, dict[StageSignature, AssignmentCounts]]:
    """Seconds of all stages, and their counts; infinite where a stage does not fit or the sum would
    not be less than `limit_seconds`.
    """
    total_seconds, counts_by_signature = 0.0, dict[StageSignature, AssignmentCounts]()
    for signature, number in distinct.items():
        solution = _stage_counts(
            signature,
            allowed[signature],
            micro_batches,
            limits,
            (limit_seconds - total_seconds) / number,
        )
        if solution is None:
            return inf, {}
        total_seconds, counts_by_signature[signature] = (
            total_seconds + number * solution[0],
            solution[1],
        )
    return total_seconds, counts_by_signature


def _allowed(
    c: CallClass, choices: Sequence[LayerChoice], strategy: Strategy | None
) -> tuple[int, ...]:
    """Indices of the distinct costs that a class may take under these choices.

    Classes that share parameters take `strategy`.
    """
    index_of_cost: dict[CallCost, int] = {}
    for index, number in enumerate(c.choice_numbers):
        if number < len(choices) and (
            not c.shares_parameters or choices[number].strategy == strategy
        ):
            index_of_cost.setdefault(c.costs[index], index)
    return tuple(index_of_cost.values())


def least_seconds(
    signature: StageSignature, micro_batches: int, usable_bytes: float
) -> tuple[float, float]:
    """Lower bounds with divisible layers: seconds of a micro-batch, seconds of a step."""
    sizes = [(c.call_count, c.costs, [w.least_bytes for w in c.costs]) for c in signature]
    micro_batch = _curve(sizes, lambda w: w.seconds)
    step = _curve(sizes, lambda w: w.seconds * micro_batches + w.sync_seconds)
    return float(micro_batch.at(usable_bytes)), float(step.at(usable_bytes))


def _least(
    signature: StageSignature, allowed: Allowed, micro_batches: int, usable_bytes: float
) -> float:
    """Lower bound of the step seconds over all counts; one call of each class is at its peak."""
    costs = [
        [c.costs[index] for index in indices] for c, indices in zip(signature, allowed, strict=True)
    ]
    sizes = [
        (c.call_count, indices, [w.lasting_bytes for w in indices])
        for c, indices in zip(signature, costs, strict=True)
    ]
    passing_bytes = max(min(w.passing_bytes for w in indices) for indices in costs)
    curve = _curve(sizes, lambda w: w.seconds * micro_batches + w.sync_seconds)
    return float(curve.at(usable_bytes - passing_bytes))


def _curve(
    sizes: Iterable[tuple[int, Sequence[CallCost], list[float]]], cost: Callable[[CallCost], float]
) -> CostCurve:
    """Least cost over bytes of classes given as (number of calls, costs, bytes of each cost)."""
    return sum_curves(
        hull(bytes_of_costs, [cost(w) for w in costs]).scaled(count)
        for count, costs, bytes_of_costs in sizes
    )


def _fastest(
    classes: StageSignature, allowed: Allowed, micro_batches: int, limits: tuple[float, float]
) -> tuple[float, AssignmentCounts] | None:
    """Seconds and counts if all calls take their fastest choice, where that fits."""

    def seconds(cost: CallCost) -> float:
        return cost.seconds * micro_batches + cost.sync_seconds

    def first(costs: Sequence[CallCost], allowed_indices: tuple[int, ...]) -> int:
        return min(allowed_indices, key=lambda w: (seconds(costs[w]), costs[w].lasting_bytes))

    fastest_indices = [
        first(c.costs, allowed_indices) for c, allowed_indices in zip(classes, allowed, strict=True)
    ]
    chosen = [(c.call_count, c.costs[w]) for c, w in zip(classes, fastest_indices, strict=True)]
    device_bytes = sum(n * w.lasting_bytes for n, w in chosen) + max(
        w.passing_bytes for _, w in chosen
    )
    if device_bytes > limits[0] or sum(n * w.host_bytes for n, w in chosen) > limits[1]:
        return None
    counts = [
        [c.call_count * (w == fastest_index) for w in range(len(c.costs))]
        for c, fastest_index in zip(classes, fastest_indices, strict=True)
    ]
    return sum(n * seconds(w) for n, w in chosen), counts


def _stage_counts(
    classes: StageSignature,
    allowed: Allowed,
    micro_batches: int,
    limits: tuple[float, float],
    limit_seconds: float,
) -> tuple[float, AssignmentCounts] | None:
    """Least seconds of one stage in a step within both memories, and its counts.

    None unless less than `limit_seconds`. Seconds and bytes are scaled to about one.
    """
    fastest = _fastest(classes, allowed, micro_batches, limits)
    if fastest is not None:
        return fastest
    program, (device_bytes, host_bytes) = LinearProgram(), limits
    seconds_scale = sum(
        c.call_count * max(w.seconds * micro_batches + w.sync_seconds for w in c.costs)
        for c in classes
    )
    largest_passing = program.real()
    lasting_shares, host_shares, seconds = list[Linear](), list[Linear](), list[Linear]()
    variables_by_class: list[dict[int, Variable]] = []
    for c, allowed_indices in zip(classes, allowed, strict=True):
        variables = {w: program.integer(0, c.call_count) for w in allowed_indices}
        program.require(total(variables.values()) == c.call_count)
        variables_by_class.append(variables)
        for w, count in variables.items():
            cost = c.costs[w]
            seconds.append(
                (cost.seconds * micro_batches + cost.sync_seconds) / seconds_scale * count
            )
            lasting_shares.append(cost.lasting_bytes / device_bytes * count)
            if cost.host_bytes:
                host_shares.append(cost.host_bytes / max(host_bytes, 1.0) * count)
            if cost.passing_bytes:
                used = program.binary()
                program.require(count <= c.call_count * used)
                program.require(largest_passing >= cost.passing_bytes / device_bytes * used)
    program.require(total(lasting_shares) + largest_passing <= 1.0)
    program.require(total(host_shares) <= 1.0)
    total_seconds = total(seconds)
    if limit_seconds < inf:
        program.require(total_seconds <= limit_seconds / seconds_scale)
    program.minimise(total_seconds)
    solution = program.solve(gap=GAP).solution
    if solution is None:
        return None
    values = solution.values
    counts = [
        [round(values[variables[w]]) if w in variables else 0 for w in range(len(c.costs))]
        for c, variables in zip(classes, variables_by_class, strict=True)
    ]
    return solution.objective * seconds_scale, counts
