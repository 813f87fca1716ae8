"""Times of pipelines of device groups in closed form, by which the search shares out micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import pairwise
from typing import NamedTuple

from ...cost_model.communication.collective import send_seconds
from ...cost_model.pipeline.closed_form import pipeline_seconds
from ...ir.devices.cluster import Cluster, Link
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
    def end(self) -> int:
        return self.first_device + self.type.width


def stage_send_seconds(cluster: Cluster, stages: Sequence[PlacedStage]) -> list[float]:
    """Seconds to send a micro-batch's activations from every stage of a pipeline to the next one."""
    seconds: list[float] = []
    for one, other in pairwise(stages):
        narrowing = max(1.0, one.type.width / other.type.width)
        amount = round(one.choice.stage.transfer_bytes * narrowing)
        seconds.append(send_seconds(amount, link_between(cluster, one, other)))
    return [*seconds, 0.0]


def link_between(cluster: Cluster, one: PlacedStage, other: PlacedStage) -> Link:
    """The slowest link between two stages."""
    if one.type.part != other.type.part:
        return cluster.link_of_parts(one.type.part, other.type.part)
    part = cluster.parts[one.type.part] if cluster.parts else cluster
    return part.link_between(min(one.first_device, other.first_device), max(one.end, other.end) - 1)


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
