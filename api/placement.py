"""Placing operators from Python and from the command line."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..ir.errors import FileError, UsageError
from ..ir.model import Model
from ..ir.placement import (
    Placement,
    PlacementDevice,
    PlacementGraph,
    PlacementLink,
    PlacementTarget,
    check_placement,
    load_graph,
    uniform_target,
)
from . import files
from .units import parse_bytes

if TYPE_CHECKING:
    from ..ir.devices.cluster import Cluster
    from ..planner.placement import PlacementOptions

# A PCIe 3.0 link of 16 lanes, where neither a cluster nor numbers are given.
ALPHA_US, BETA_US_PER_BYTE = 10.0, 1.0 / 12e3
PLACEMENT = "plait/placement"
OUT_OF_TIME = 4


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

    machine = load_cluster(cluster) if isinstance(cluster, str) else cluster
    size = parse_bytes(memory) if isinstance(memory, str) else memory
    chosen = target or _target(machine, devices, size, alpha_us, beta_us_per_byte)
    asked = options or PlacementOptions()
    if isinstance(graph, str | Path):
        graph = read_graph(Path(graph))
    if isinstance(graph, PlacementGraph):
        return search.place(graph, chosen, asked).placement
    asked = msgspec.structs.replace(asked, colocation=True)
    made = search.place(_step_of(graph, machine, optimizer), chosen, asked).placement
    return _of_model(made, graph)


def _of_model(placement: Placement, model: Model) -> Placement:
    """The placement with the model that its graph is a step of, so that it can be compiled."""
    return msgspec.structs.replace(
        placement, model_digest=model.fingerprint(), global_batch=model.batch
    )


def read_graph(path: Path) -> PlacementGraph:
    """A `placement-graph/1` file; raises FileError naming the file and the place in it."""
    try:
        return load_graph(path.read_bytes())
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except FileError as error:
        raise FileError(f"{path}: {error}") from error


def read_placement(path: Path) -> Placement:
    """A placement that `place` wrote; raises FileError naming the file and the place in it."""
    found = files.read(path, Placement, PLACEMENT)
    try:
        check_placement(found)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
    return found


def _step_of(model: Model, cluster: Cluster | None, optimizer: str) -> PlacementGraph:
    from ..cost_model.placement.from_model import graph_of
    from ..planner.options import optimizer_states

    if cluster is None:
        raise UsageError("a model has no times of its own: name the cluster that it runs on")
    item = next((p.type for p in model.parameters if p.type.is_float), None)
    half = item is not None and item.dtype in ("float16", "bfloat16")
    return graph_of(model, cluster, optimizer_states(optimizer, half, 4))


def _target(
    cluster: Cluster | None, devices: int | None, memory: int | None, alpha: float, beta: float
) -> PlacementTarget:
    count = devices or (cluster.devices if cluster else 0)
    if count < 1 or (cluster and count > cluster.devices):
        raise UsageError(f"{count} devices: say how many, at most those of the cluster")
    if cluster is None:
        if memory is None:
            raise UsageError("say how much memory a device has, or name a cluster")
        try:
            return uniform_target(count, memory, alpha, beta)
        except ValueError as error:
            raise UsageError(str(error)) from None
    room = memory or cluster.device.memory_bytes - cluster.device.runtime_overhead_bytes
    rows = tuple(tuple(_link(cluster, i, j) for j in range(count)) for i in range(count))
    return PlacementTarget((PlacementDevice(room),) * count, rows)


def _link(cluster: Cluster, one: int, other: int) -> PlacementLink:
    """The link between two devices: the outermost level whose groups they do not share."""
    sizes = [cluster.within(number) for number in range(len(cluster.levels))]
    apart = (number for number, size in enumerate(sizes) if one // size != other // size)
    level = cluster.levels[next(apart, -1)]
    return PlacementLink(level.latency_seconds * 1e6, 1e6 / level.bandwidth_bytes_per_second)


def run(options: argparse.Namespace) -> int:
    """The verb `place`."""
    from ..cost_model.hardware import load_cluster
    from ..planner.placement import PlacementOptions, search
    from .commands.common import note, show

    cluster = load_cluster(options.cluster) if options.cluster else None
    memory = parse_bytes(options.memory) if options.memory else None
    target = _target(cluster, options.devices, memory, options.alpha_us, options.beta_us_per_byte)
    graph, model = _graph_from(options, cluster)
    asked = PlacementOptions(
        options.algorithm,
        options.link,
        options.memory_rule,
        options.time_limit,
        seed=options.seed,
        colocation=model is not None or options.colocation == "keep",
    )
    start = time.perf_counter()
    outcome = search.place(graph, target, asked)
    made = _of_model(outcome.placement, model) if model else outcome.placement
    spent = time.perf_counter() - start
    if options.output:
        files.write(Path(options.output), made, PLACEMENT)
        note(f"wrote {options.output}")
    if options.json:
        show(figures(made, spent))
    else:
        print(summary(made))
        note(f"placed in {spent:.1f} s")
    return OUT_OF_TIME if outcome.cut_short else 0


def _graph_from(options: argparse.Namespace, cluster: Any) -> tuple[PlacementGraph, Model | None]:
    """The graph of SOURCE, and the model that it is a step of, if any."""
    from .commands.common import format_of, load_model

    path = Path(options.source)
    if options.source.endswith(".json") and not options.source.startswith("hf:"):
        if format_of(path) != "plait/model":
            return read_graph(path), None
    model = load_model(options)
    return _step_of(model, cluster, options.optimizer), model


def figures(placement: Placement, seconds: float) -> dict[str, Any]:
    """The figures of a placement under the names that the documentation promises."""
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


def summary(placement: Placement) -> str:
    """The placement in a few lines: makespan, gap, and what every device does and holds."""
    from ..ir.text.printer import seconds, size

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
        room = placement.target.devices[d].memory_bytes
        lines.append(f"  device {d}: {counts[d]} operators, {size(peak)} of {size(room)}")
    return "\n".join(lines)
