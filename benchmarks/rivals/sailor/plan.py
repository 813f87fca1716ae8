"""Plans of Sailor's simulator: pipelines of stages, each with replicas on tensor groups."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import msgspec


class TensorGroup(msgspec.Struct, frozen=True, order=True):
    """GPUs of one machine that split the layers of a stage."""

    zone: str
    gpu: str
    degree: int


class SailorPipeline(msgspec.Struct, frozen=True):
    """Layers of every stage, and its replicas; replica j sends to replica j of the next stage."""

    layers: tuple[int, ...]
    replicas: tuple[tuple[TensorGroup, ...], ...]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First layer and the one after the last, of every stage."""
        return list(pairwise(accumulate(self.layers, initial=0)))


class SailorPlan(msgspec.Struct, frozen=True):
    """Pipelines on micro-batches of `micro_batch` samples."""

    micro_batch: int
    pipelines: tuple[SailorPipeline, ...]

    def groups(self) -> Iterator[TensorGroup]:
        """Every tensor group that the plan uses."""
        for pipeline in self.pipelines:
            for replicas in pipeline.replicas:
                yield from replicas

    @property
    def equal_replicas(self) -> bool:
        """Whether all stages of a pipeline have as many replicas: else the simulator's count of
        micro-batches is that of the first stage alone.
        """
        return all(len({len(stage) for stage in p.replicas}) == 1 for p in self.pipelines)

    @staticmethod
    def parse(data: dict[str, Any]) -> SailorPlan:
        """A plan from its JSON, where equal pipelines and equal replicas are runs."""
        pipelines = [
            _pipeline(run["pipeline"]) for run in data["pipelines"] for _ in range(run["times"])
        ]
        return SailorPlan(data["micro_batch"], tuple(pipelines))


def _pipeline(data: dict[str, Any]) -> SailorPipeline:
    replicas = tuple(
        tuple(TensorGroup(zone, gpu, t) for n, gpu, _, zone, t in stage for _ in range(n))
        for stage in data["replicas"]
    )
    return SailorPipeline(tuple(data["layers"]), replicas)
