"""Galvatron's search space as layer problems, one for each setting that all layers share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import msgspec
import numpy as np

from plait.benchmarks.rivals import galvatron_pipeline
from plait.benchmarks.rivals.galvatron_costs import GalvatronCosts
from plait.benchmarks.rivals.galvatron_profile import MIB
from plait.benchmarks.rivals.layers.objective import Amount
from plait.benchmarks.rivals.layers.problem import (
    Choice,
    EqualLayers,
    LayerProblem,
    LayerSolution,
    LayerStage,
)
from plait.planner.interop.galvatron_file import GalvatronPlan
from plait.planner.interop.galvatron_strategy import (
    GalvatronBatch,
    GalvatronStrategy,
    parse,
    powers,
    strategies,
)

GIB = 1024 * MIB
PLAIN_GIB = 20  # devices above this keep a fifth for the allocator's cache
MOST = 8  # stages, and ranks that split a layer


class GalvatronPipeline:
    """Galvatron's step formula as an objective.

    More time in a middle stage may hide its synchronisation, so the formula does not grow with
    every argument; the lower bound counts synchronisation only beside the term that does.
    """

    def step(
        self, seconds: Sequence[Amount], synchronised: Sequence[Amount], micro_batches: int
    ) -> Amount:
        return galvatron_pipeline.step_seconds(seconds, synchronised, micro_batches)

    def lower_bound(
        self, seconds: Sequence[Amount], synchronised: Sequence[Amount], micro_batches: int
    ) -> Amount:
        drained = galvatron_pipeline.drained(
            seconds, micro_batches
        ) + galvatron_pipeline.exposed_reduction(seconds, synchronised)
        return np.maximum(drained, galvatron_pipeline.filled(seconds, micro_batches))


class GalvatronTask(msgspec.Struct, frozen=True):
    """What all layers of a plan share: batch, stages, most ranks of a layer, and the strategy of
    embedding and head. Without `tensor`, layers only use Ulysses and need no buffer.
    """

    batch: GalvatronBatch
    stages: int
    ranks: int
    tensor: bool
    ends: GalvatronStrategy


def budget_bytes(device_bytes: int) -> int:
    """Memory limit of a plan by Galvatron's rule, made monotone.

    The rule leaves a fifth of devices over 20 GiB alone, and so less of 24 GiB than of 20.
    """
    return max(min(device_bytes, PLAIN_GIB * GIB), plain_budget_bytes(device_bytes))


def plain_budget_bytes(device_bytes: int) -> int:
    """Galvatron's rule as it is."""
    mib = device_bytes // MIB
    return (mib - int(mib * 0.2) if mib // 1024 > PLAIN_GIB else mib) * MIB


def tasks(devices: int, samples: int, layers: int) -> Iterator[GalvatronTask]:
    """Every task of a global batch, in Galvatron's order."""
    for micro_batches in (m for m in range(1, samples + 1) if samples % m == 0):
        batch = GalvatronBatch(samples, micro_batches)
        for stages in powers(min(MOST, devices, layers, micro_batches)):
            replicas = min(samples // micro_batches, devices // stages)
            most = min(devices // stages, MOST)
            limits = [r for r in powers(most) if r * replicas >= devices // stages]
            for ranks, tensor in [(most, False), *((r, True) for r in limits)]:
                ends = strategies(devices, stages, ranks, replicas, recompute=False)
                for end in ends:
                    if tensor or end.tensor_ranks == 1:
                        yield GalvatronTask(batch, stages, ranks, tensor, end)


class GalvatronProblems:
    """Problems of tasks; layers that several tasks share are one value."""

    def __init__(self, costs: GalvatronCosts, budget_bytes: int) -> None:
        self.costs, self.budget_bytes = costs, budget_bytes
        self.layers = cache(self._layers)
        self.choice = cache(self._choice)

    def problem(self, task: GalvatronTask) -> LayerProblem:
        ends_bytes = self.costs.ends_bytes(task.ends, task.batch)
        seconds = self.costs.ends_seconds(task.ends, task.batch)
        buffer = 0
        if task.tensor:
            buffer = self.costs.buffer_bytes(task.stages, task.ranks, task.batch)
        return LayerProblem(
            tuple(
                LayerStage(
                    self.layers(task.batch, task.stages, stage, task.ranks, task.tensor),
                    self.budget_bytes,
                    ends_bytes[stage] + buffer,
                    seconds[stage],
                )
                for stage in range(task.stages)
            ),
            task.batch.micro_batches,
        )

    def _layers(
        self, batch: GalvatronBatch, stages: int, stage: int, ranks: int, tensor: bool
    ) -> tuple[EqualLayers, ...]:
        devices, total = self.costs.cluster.devices, self.costs.model.layers
        replicas = min(batch.samples // batch.micro_batches, devices // stages)
        choices = tuple(
            self.choice(strategy, batch, stage)
            for strategy in strategies(devices, stages, ranks, replicas, recompute=True)
            if tensor or strategy.tensor_ranks == 1
        )
        rest = total % stages if stage == stages - 1 else 0
        return (EqualLayers("layer", total // stages + rest, choices),)

    def _choice(self, strategy: GalvatronStrategy, batch: GalvatronBatch, stage: int) -> Choice:
        seconds = self.costs.layer_seconds(strategy, batch)
        layer_bytes = self.costs.layer_bytes(strategy, batch, stage)
        return Choice(str(strategy), seconds.plain, seconds.synchronised, layer_bytes)


def plan_of(task: GalvatronTask, problem: LayerProblem, solution: LayerSolution) -> GalvatronPlan:
    """A solution as a plan; in a stage, layers split over fewer ranks come first."""
    chosen: list[GalvatronStrategy] = []
    for stage, (counts,) in zip(problem.stages, solution.counts, strict=True):
        (layers,) = stage.layers
        runs = [(parse(c.name), n) for c, n in zip(layers.choices, counts, strict=True)]
        chosen += [s for s, n in sorted(runs) for _ in range(n)]
    division = tuple(stage.layers[0].count for stage in problem.stages)
    return GalvatronPlan(task.batch, tuple(chosen), division, task.ends)
