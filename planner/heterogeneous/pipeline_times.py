"""Times of pipelines of device groups in closed form, by which the search shares out micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import pairwise
from typing import NamedTuple

from ...cost_model.pipeline.closed_form import pipeline_seconds
from ...cost_model.pipeline.group_pipeline import gradient_sum_seconds, group_send_seconds
from ...ir.devices.cluster import Cluster
from ...ir.plan.plan import Span
from .group_prices import GroupType, StageChoice


class PlacedStage(NamedTuple):
    """What a device group runs, and its first device in its part."""

    type: GroupType
    first_device: int
    choice: StageChoice

    @property
    def calls(self) -> Span:
        return self.choice.stage.model_chunks[0]

    @property
    def part(self) -> int:
        return self.type.part

    @property
    def devices(self) -> int:
        return self.type.width


def stage_send_seconds(cluster: Cluster, stages: Sequence[PlacedStage]) -> list[float]:
    """Seconds to send a micro-batch's activations from every stage of a pipeline to the next one."""
    seconds = [
        group_send_seconds(cluster, one, other, one.choice.stage.transfer_bytes)
        for one, other in pairwise(stages)
    ]
    return [*seconds, 0.0]


def sync_seconds(cluster: Cluster, stages: Sequence[PlacedStage]) -> float:
    """Seconds after the pipelines in which the slowest stage of all of them adds up its gradients,
    inside its group and with the other groups of its calls, and updates its weights."""
    each = [placed.choice.stage for placed in stages]
    totals = gradient_sum_seconds(cluster, stages, each)
    return max(stage.sync_seconds + added for stage, added in zip(each, totals, strict=True))


def replica_seconds(cluster: Cluster, stages: Sequence[PlacedStage], micro_batches: int) -> float:
    """Seconds of a pipeline in closed form."""
    busy = [placed.choice.seconds for placed in stages]
    sends = stage_send_seconds(cluster, stages)
    return pipeline_seconds(busy, sends, micro_batches) if micro_batches else 0.0


def deal_micro_batches(
    cluster: Cluster, replicas: Sequence[Sequence[PlacedStage]], micro_batches: int
) -> list[int]:
    """Number of micro-batches of every pipeline: each goes to the one that would end first."""
    counts = [0] * len(replicas)
    ends = [(replica_seconds(cluster, replica, 1), n) for n, replica in enumerate(replicas)]
    heapify(ends)
    for _ in range(micro_batches):
        _, n = ends[0]
        counts[n] += 1
        heapreplace(ends, (replica_seconds(cluster, replicas[n], counts[n] + 1), n))
    return counts
