"""Overlap of communication and compute: the longer of the two, plus contention.

Collective kernels take processors and memory bandwidth from concurrent compute kernels; Galvatron's
shipped profiles put the slowdown of the overlapped time at 1.13 (Miao et al. 2022).

What generated programs run beside calls has ends that nothing runs beside:

    forward    gather 0 │ call 0 ‖ gather 1 │ call 1 ‖ gather 2 │ …
    backward   call n ‖ gather n-1 │ call n-1 ‖ gather n-2, scatter n │ … │ scatter 0
    step       last backward ‖ sums of full buckets │ sum of the last bucket
    update     gather of a bucket │ forward ‖ gathers of the others
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ...ir.devices.cluster import Cluster
from ..execution_model import ExecutionModel
from .exchange import ExchangeSeconds

CONTENTION = 0.13


class AxisSeconds(NamedTuple):
    """Equal collectives inside of a call: their kind, axis, seconds of each, and number."""

    kind: str
    axis: str
    seconds: float
    number: int = 1


class ExposedSeconds(NamedTuple):
    """Seconds that exchanges of a stage add to its compute: in forward and in backward of a micro-batch,
    and once per step, of gradients and of updated weights."""

    forward: float
    backward: float
    reduce: float
    update_gather: float


def overlapped_seconds(compute: float, communication: float) -> float:
    """Seconds of both when they run concurrently without dependencies."""
    return max(compute, communication) + CONTENTION * min(compute, communication)


def exposed_seconds(compute: float, communication: float) -> float:
    """Seconds that communication adds to the compute it overlaps with."""
    return overlapped_seconds(compute, communication) - compute


def exposed_exchanges(
    exchanges: ExchangeSeconds,
    forward: float,
    backward: float,
    execution: ExecutionModel,
    cluster: Cluster,
) -> ExposedSeconds:
    """What the exchanges of a stage add to `forward` and `backward` seconds of compute of a micro-batch.

    Ranks of one host, which exchange through its processors, hide nothing."""
    gather, again, scatter, reduce, update_gather = exchanges[:5]
    weights, gradients = (
        x in execution.overlaps and not exchanged_by_processors(cluster)
        for x in ("weights", "gradients")
    )
    ends = exchanges.ends
    if not execution.exposes_ends and gradients and not weights:
        within = exposed_after(backward, again + scatter, ends.scatter)
        summed = exposed_after(backward, reduce, ends.reduce)
        return ExposedSeconds(gather, within, summed, update_gather)
    before = exposed_after(forward, gather, ends.gather) if weights else gather
    within = exposed_after(backward, again + scatter, ends.scatter)
    summed = exposed_after(backward, reduce, ends.reduce)
    updated = exposed_after(forward, update_gather, ends.update_gather)
    return ExposedSeconds(
        before,
        within if weights and gradients else again + scatter,
        summed if gradients else reduce,
        updated if weights else update_gather,
    )


def exposed_after(compute: float, communication: float, alone: float) -> float:
    """Seconds that communication adds to compute where `alone` of its seconds run beside nothing."""
    return alone + exposed_seconds(compute, communication - alone)


def beside_operators(
    sends: Iterable[AxisSeconds], execution: ExecutionModel, cluster: Cluster
) -> float:
    """Seconds of the collectives of one half of a call that run beside its operators.

    Where ends are exposed, one of every kind over an axis runs beside nothing: the first gather, the
    last sum. Ranks of one host, which exchange through its processors, hide nothing there."""
    beside, alone = dict[tuple[str, str], float](), dict[tuple[str, str], float]()
    for kind, axis, seconds, number in sends:
        if axis not in execution.overlaps:
            continue
        share, key = execution.tensor_share if axis == "tp" else 1.0, (kind, axis)
        beside[key] = beside.get(key, 0.0) + share * seconds * number
        alone[key] = max(share * seconds, alone.get(key, 0.0))
    if not execution.exposes_ends:
        return sum(beside.values())
    hides = not exchanged_by_processors(cluster)
    return sum(seconds - alone[key] for key, seconds in beside.items()) if hides else 0.0


def exchanged_by_processors(cluster: Cluster) -> bool:
    """Whether all ranks are processes of one host that is itself the device."""
    return not cluster.device.host_copies_hide and all(x.size == 1 for x in cluster.levels[:-1])
