"""Placing every operator of a graph on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..ir.errors import InfeasibleError, UsageError
from ..ir.model.model import Model
from ..ir.plan.placement import (
    Placement,
    PlacementDevice,
    PlacementGraph,
    PlacementLink,
    PlacementTarget,
    uniform_target,
)
from ..ir.text.units import parse_memory, size
from .formats import files

if TYPE_CHECKING:
    from ..ir.devices.cluster import Cluster
    from ..planner.placement import PlacementOptions

# A PCIe 3.0 link of 16 lanes, where neither a cluster nor numbers are given.
ALPHA_US, BETA_US_PER_BYTE = 10.0, 1.0 / 12e3
PLACEMENT = "plait/placement"


def place(
    graph: PlacementGraph | Model | str | Path,
    *,
    devices: int | None = None,
    memory: int | str | None = None,
    cluster: str | Cluster | None = None,
    target: PlacementTarget | None = None,
    alpha_us: float = ALPHA_US,
    beta_us_per_byte: float = BETA_US_PER_BYTE,
    optimizer: str = "adamw",
    options: PlacementOptions | None = None,
) -> Placement:
    """Every operator of a graph on one device: the fastest placement found that fits.

    `graph`: a PlacementGraph, the path of a `placement-graph/1` file, or a traced Model (one training
    step; needs `cluster` for the times of its operators). The devices are `target`, or the first
    `devices` of a `cluster`, or `devices` equal ones with `memory` bytes each (or text, `"8GiB"`) and
    links of `alpha_us + beta_us_per_byte * bytes` microseconds.
    Raises InfeasibleError when nothing fits or was found to fit, FileError, UsageError.
    Methods: Jeon et al. 2020 (Baechi), Topcuoglu et al. 2002, Kirkpatrick et al. 1983; see docs.
    """
    from ..cost_model.hardware import load_cluster
    from ..planner.placement import PlacementOptions, search

    if isinstance(cluster, str):
        cluster = load_cluster(cluster)
    if target is None:
        memory_bytes = parse_memory(memory)
        target = placement_target(cluster, devices, memory_bytes, alpha_us, beta_us_per_byte)
    options = options or PlacementOptions()
    if isinstance(graph, str | Path):
        graph = files.read_graph(Path(graph))
    if isinstance(graph, PlacementGraph):
        return search.place(graph, target, options).placement
    options = msgspec.structs.replace(options, colocation=True)
    step = step_graph(graph, cluster, optimizer)
    return placement_of_model(search.place(step, target, options).placement, graph)


def placement_of_model(placement: Placement, model: Model) -> Placement:
    """The placement with the model whose step was placed, so that it can be compiled."""
    return msgspec.structs.replace(
        placement, model_digest=model.fingerprint(), global_batch=model.batch
    )


def read_placement(path: Path) -> Placement:
    """A placement that `place` wrote; raises FileError naming the file and the place in it."""
    return files.read(path, Placement, PLACEMENT)


def step_graph(model: Model, cluster: Cluster | None, optimizer: str) -> PlacementGraph:
    """One training step of a model as a graph, its operators timed for the cluster's devices.

    Raises UsageError without a cluster."""
    from ..cost_model.placement.from_model import graph_of
    from ..ir.lowering.cast import narrowest_item_bytes
    from ..planner.question.options import PlanOptions
    from ..planner.question.training import optimizer_states

    if cluster is None:
        raise UsageError("a model has no times of its own: name the cluster that it runs on")
    item_bytes = narrowest_item_bytes(model.parameters)
    return graph_of(model, cluster, optimizer_states(PlanOptions(optimizer=optimizer), item_bytes))


def placement_target(
    cluster: Cluster | None,
    devices: int | None,
    memory_bytes: int | None,
    alpha_us: float,
    beta_us_per_byte: float,
) -> PlacementTarget:
    """The first `devices` devices of a cluster, or equal ones (see `place`). Raises UsageError."""
    count = devices or (cluster.devices if cluster else 0)
    if count < 1 or (cluster and count > cluster.devices):
        raise UsageError(f"{count} devices: say how many, at most those of the cluster")
    if cluster is None:
        if memory_bytes is None:
            raise UsageError("say how much memory a device has, or name a cluster")
        try:
            return uniform_target(count, memory_bytes, alpha_us, beta_us_per_byte)
        except ValueError as error:
            raise UsageError(str(error)) from None
    limit = memory_bytes or cluster.device.memory_bytes - cluster.device.runtime_overhead_bytes
    if limit <= 0:
        device = cluster.device
        raise InfeasibleError(
            f"the runtime takes {size(device.runtime_overhead_bytes)} of a device's "
            f"{size(device.memory_bytes)}: no memory is left for operators"
        )
    rows = tuple(tuple(_link(cluster, i, j) for j in range(count)) for i in range(count))
    return PlacementTarget((PlacementDevice(limit),) * count, rows)


def _link(cluster: Cluster, one: int, other: int) -> PlacementLink:
    """The link between two devices: the outermost level whose groups they do not share."""
    sizes = [cluster.devices_within(number) for number in range(len(cluster.levels))]
    apart = (number for number, size in enumerate(sizes) if one // size != other // size)
    level = cluster.levels[next(apart, -1)]
    return PlacementLink(level.latency_seconds * 1e6, 1e6 / level.bandwidth_bytes_per_second)


def placement_json(placement: Placement, seconds: float) -> dict[str, Any]:
    """A placement as data, under the names of `plait place --json`."""
    return {
        "device": placement.device,
        "order": list(placement.order),
        "makespan_us": placement.makespan_us,
        "lower_bound_us": placement.lower_bound_us,
        "gap": placement.gap,
        "status": placement.status,
        "peak_memory": list(placement.peak_memory),
        "algorithm": placement.algorithm,
        "time_s": seconds,
        "link": placement.link,
        "memory_rule": placement.memory_rule,
    }


def placement_text(placement: Placement) -> str:
    """A placement in a few lines: makespan, gap, operators and memory of every device."""
    from ..ir.text.units import seconds

    bound = seconds(placement.lower_bound_us * 1e-6)
    lines = [
        f"{placement.graph.name}: {len(placement.order)} operators on "
        f"{len(placement.target.devices)} devices, {placement.link} links, "
        f"{placement.memory_rule} memory",
        f"  makespan {seconds(placement.makespan_us * 1e-6)}, no placement is below {bound} "
        f"(gap {100 * placement.gap:.2g} %, {placement.status}); {placement.algorithm}",
    ]
    counts = dict.fromkeys(range(len(placement.target.devices)), 0)
    for d in placement.device.values():
        counts[d] += 1
    for d, peak in enumerate(placement.peak_memory):
        limit = placement.target.devices[d].memory_bytes
        lines.append(f"  device {d}: {counts[d]} operators, {size(peak)} of {size(limit)}")
    return "\n".join(lines)
