"""Operators with replicated or sharded weights, each decided by itself (OSDP, Jiang et al. 2023).

    dp      replicated                 2 (N - 1) (alpha + S / N beta): gradients are all-reduced
    zero3   a shard on every rank      3 (N - 1) (alpha + S / N beta): 2 gathers, reduce-scatter
    k / g   g slices, k of them zero3  k gathers of S / g, and an all-reduce of the rest

As layer problems: bytes of states add up over operators, but of gathered weights only the largest
slice exists at a time. So there is a problem for every batch and every size of the largest
gathered slice; the best of all is the optimum. Seconds are per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

import msgspec

from plait.benchmarks.rivals.layers.exact_search import BestSolution, fastest
from plait.benchmarks.rivals.layers.objective import OneForwardOneBackward
from plait.benchmarks.rivals.layers.problem import Choice, EqualLayers, LayerProblem, LayerStage


class Operator(msgspec.Struct, frozen=True):
    """Equal operators: weight bytes of one, and the numbers of slices it may be divided into."""

    name: str
    count: int
    weight_bytes: int
    slices: tuple[int, ...] = (1,)


class Setting(msgspec.Struct, frozen=True):
    """Ranks, seconds per message and per byte, state bytes per weight byte, activation bytes and
    compute seconds of a sample, and the memory limit of a device.
    """

    ranks: int
    message_seconds: float
    byte_seconds: float
    states: float
    sample_bytes: int
    sample_seconds: float
    budget_bytes: int


class WeightSharding(msgspec.Struct, frozen=True):
    """Sharding of one operator's weight: `sharded` of its `slices` are zero3, others replicated."""

    slices: int
    sharded: int

    def __str__(self) -> str:
        return f"zero3:{self.sharded}/{self.slices}" if self.sharded else "dp"

    def gathered_bytes(self, operator: Operator) -> int:
        """Bytes gathered while the operator runs."""
        return -(-operator.weight_bytes // self.slices) if self.sharded else 0

    def state_bytes(self, operator: Operator, setting: Setting) -> int:
        """State bytes of the operator on one rank."""
        share = self.sharded / self.slices
        local_share = 1 - share + share / setting.ranks
        return round(setting.states * operator.weight_bytes * local_share)

    def seconds(self, operator: Operator, setting: Setting) -> float:
        """Seconds of communication in a step."""
        replicated = self.slices - self.sharded
        slice_seconds = operator.weight_bytes / self.slices / setting.ranks * setting.byte_seconds
        reduced = 2 * (setting.message_seconds + replicated * slice_seconds) if replicated else 0.0
        gathered = 3 * self.sharded * (setting.message_seconds + slice_seconds)
        return (setting.ranks - 1) * (reduced + gathered)


DP, ZERO3 = WeightSharding(1, 0), WeightSharding(1, 1)


class OsdpPlan(msgspec.Struct, frozen=True):
    """The optimum: samples of a rank per step, seconds of one sample, and the number of operators
    by sharding; `gap`: how much faster it could be.
    """

    samples: int
    sample_seconds: float
    counts: tuple[dict[str, int], ...]
    gap: float


def every(operator: Operator) -> Iterator[WeightSharding]:
    """Every sharding of an operator's weight."""
    yield DP
    for slices in operator.slices:
        yield from (WeightSharding(slices, sharded) for sharded in range(1, slices + 1))


def sharded(operator: Operator) -> Iterator[WeightSharding]:
    """The full weight in shards, as in FSDP."""
    yield ZERO3


def problem(
    operators: Sequence[Operator],
    setting: Setting,
    samples: int,
    gathered_bytes: int,
    shardings: Callable[[Operator], Iterable[WeightSharding]] = every,
) -> LayerProblem:
    """All operators as one stage, for `samples` and gathered slices of at most `gathered_bytes`."""

    def choice(operator: Operator, sharding: WeightSharding) -> Choice:
        seconds = sharding.seconds(operator, setting) / samples
        return Choice(str(sharding), seconds, seconds, sharding.state_bytes(operator, setting))

    layers = tuple(
        EqualLayers(
            o.name,
            o.count,
            tuple(choice(o, w) for w in shardings(o) if w.gathered_bytes(o) <= gathered_bytes),
        )
        for o in operators
    )
    memory = samples * setting.sample_bytes + gathered_bytes
    compute = setting.sample_seconds
    return LayerProblem((LayerStage(layers, setting.budget_bytes, memory, compute, compute),), 1)


def best(
    operators: Sequence[Operator],
    setting: Setting,
    shardings: Callable[[Operator], Iterable[WeightSharding]] = every,
) -> OsdpPlan | None:
    """The most samples per second, or None where not even one sample fits.

    `shardings`: those allowed for an operator; `sharded` for plain FSDP.
    """
    needed = max(min(w.gathered_bytes(o) for w in shardings(o)) for o in operators)
    sizes_found = {w.gathered_bytes(o) for o in operators for w in shardings(o)}
    sizes = sorted(size for size in sizes_found if size >= needed)
    least = sum(min(w.state_bytes(o, setting) for w in shardings(o)) * o.count for o in operators)
    problems = [
        (samples, problem(operators, setting, samples, size, shardings))
        for samples in _batches(setting, least)
        for size in sizes
    ]
    best_solution = fastest([p for _, p in problems], OneForwardOneBackward())
    return best_solution and _plan(*problems[best_solution.number], best_solution)


def _batches(setting: Setting, least_bytes: int) -> Iterator[int]:
    """Numbers of samples whose activations fit beside the least of states."""
    for samples in count(1):
        if samples * setting.sample_bytes + least_bytes > setting.budget_bytes:
            return
        yield samples


def _plan(samples: int, problem: LayerProblem, best_solution: BestSolution) -> OsdpPlan:
    (counts,) = best_solution.solution.counts
    (stage,) = problem.stages
    named = tuple(
        {c.name: n for c, n in zip(layers.choices, counts_of_operator, strict=True) if n}
        for layers, counts_of_operator in zip(stage.layers, counts, strict=True)
    )
    return OsdpPlan(samples, best_solution.solution.step_seconds, named, best_solution.solution.gap)
