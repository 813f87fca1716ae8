"""Time of pipeline replicas, and of adding up their gradients at the end of a step."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import pairwise

from msgspec.structs import replace

from ...cost_model.communication.collective import CommGroup, collective_seconds, send_seconds
from ...cost_model.pipeline.closed_form import pipeline_seconds
from ...cost_model.pipeline.simulate import simulate, stage_seconds
from ...ir.devices.cluster import Cluster, Link
from ...ir.devices.heterogeneous import HeterogeneousCluster
from ...ir.plan.heterogeneous import DeviceGroup, PipelineReplica
from ...ir.plan.schedule import SCHEDULES


def stage_send_seconds(cluster: HeterogeneousCluster, groups: Sequence[DeviceGroup]) -> list[float]:
    """Seconds to send a micro-batch's activations from every group of a replica to the next one."""
    seconds: list[float] = []
    for one, other in pairwise(groups):
        amount = one.stage.transfer_bytes * max(1.0, one.width / other.width)
        seconds.append(send_seconds(round(amount), link_between(cluster, one, other)))
    return [*seconds, 0.0]


def link_between(cluster: HeterogeneousCluster, one: DeviceGroup, other: DeviceGroup) -> Link:
    """The slowest link between two device groups."""
    if one.part != other.part:
        return cluster.link
    end = max(one.first_device + one.width, other.first_device + other.width)
    return cluster.parts[one.part].link_between(min(one.first_device, other.first_device), end - 1)


def replica_seconds(
    cluster: HeterogeneousCluster, groups: Sequence[DeviceGroup], micro_batches: int
) -> float:
    """Seconds of a replica's pipeline in closed form."""
    busy = [group.stage.forward_seconds + group.stage.backward_seconds for group in groups]
    return (
        pipeline_seconds(busy, stage_send_seconds(cluster, groups), micro_batches)
        if micro_batches
        else 0.0
    )


def simulated_seconds(cluster: HeterogeneousCluster, replica: PipelineReplica) -> float:
    """Seconds of a replica's pipeline, simulated event by event (1F1B)."""
    transfers = stage_send_seconds(cluster, replica.device_groups)
    costs = [
        stage_seconds(group.stage.forward_seconds, group.stage.backward_seconds, onward, back)
        for group, onward, back in zip(
            replica.device_groups, transfers, [0.0, *transfers[:-1]], strict=True
        )
    ]
    table = SCHEDULES["1f1b"](len(replica.device_groups), replica.micro_batches)
    return simulate(table, costs).makespan_seconds


def deal_micro_batches(
    cluster: HeterogeneousCluster, replicas: Sequence[Sequence[DeviceGroup]], micro_batches: int
) -> list[int]:
    """Number of micro-batches of every replica: each goes to the replica that would end first."""
    counts = [0] * len(replicas)
    ends = [(replica_seconds(cluster, replica, 1), n) for n, replica in enumerate(replicas)]
    heapify(ends)
    for _ in range(micro_batches):
        _, n = ends[0]
        counts[n] += 1
        heapreplace(ends, (replica_seconds(cluster, replicas[n], counts[n] + 1), n))
    return counts


def sync_seconds(cluster: HeterogeneousCluster, replicas: Sequence[Sequence[DeviceGroup]]) -> float:
    """Seconds once per step: inside device groups, then an all-reduce over replicas."""
    groups = [group for replica in replicas for group in replica]
    within_groups = max(group.stage.sync_seconds for group in groups)
    if len(replicas) == 1:
        return within_groups
    replica_cluster = Cluster(
        "lines", cluster.parts[0].device, (replace(cluster.link, size=len(replicas)),)
    )
    trained_bytes = max(
        share.bytes.trained_bytes for group in groups for share in group.stage.bytes_by_strategy
    )
    return within_groups + float(
        collective_seconds(
            "all_reduce", trained_bytes, CommGroup(len(replicas), 1), replica_cluster
        )
    )
