"""The report of a placement: its graph by device, timeline, transfers and memory."""

from __future__ import annotations

from collections import defaultdict

from msgspec.structs import replace

from ...cost_model.placement.trace import (
    MemorySpan,
    PlacementTrace,
    memory_levels,
    memory_spans,
    parts_at_peak,
    trace_placement,
)
from ...ir.plan.placement import Placement, PlacementNode
from ...ir.text.summary import one_line
from ...ir.text.units import seconds, size
from .layout import arrange
from .placement_modules import has_modules, module_graphs
from .report import Bar, Box, BoxGraph, Edge, Event, Report, ReportTable, TimelineChart

MOST_BOXES = 150  # operators drawn one by one; more are drawn by slices of time
SLICES = 20


def report_of_placement(placement: Placement) -> Report:
    """Boxes are modules where operators say theirs, else operators; in large graphs those of one device
    in a slice of time. They open."""
    execution = trace_placement(placement)
    lifetimes = memory_spans(placement, execution)
    count = len(placement.target.devices)
    limits = [d.memory_bytes for d in placement.target.devices]
    memory = tuple(
        Bar(
            f"device {d}",
            tuple(parts_at_peak(lifetimes, d, placement.memory_rule == "train").items()),
            (d, d),
            0 if len(set(limits)) == 1 else int(limits[d]),
        )
        for d in range(count)
    )
    full = fullest_device(placement)
    return Report(
        title=one_line(placement.graph.name),
        subtitle=f"{len(placement.order)} operators on {count} devices, {placement.link} links, "
        f"memory by the {placement.memory_rule} rule",
        verdict=_verdict(placement),
        fits=placement.peak_memory[full] <= limits[full],
        headroom=replace(memory[full], label=f"fullest device, {full}, at its peak"),
        tiles=_tiles(placement),
        graphs=_graphs(placement, execution),
        modes=("device", "time"),
        stages=count,
        part="device",
        memory_limit_bytes=int(limits[full]),
        memory=memory,
        step=tuple(_busy(execution, d) for d in range(count)),
        timeline=_timeline(placement, execution, lifetimes),
        tables=(_devices(placement, execution),),
    )


def fullest_device(placement: Placement) -> int:
    """The device whose peak is the largest share of its memory."""
    shares = [
        peak / max(device.memory_bytes, 1.0)
        for peak, device in zip(placement.peak_memory, placement.target.devices, strict=True)
    ]
    return shares.index(max(shares))


def _verdict(placement: Placement) -> str:
    """Whether it fits, and what a step takes beside the least that is possible and one device alone."""
    full = fullest_device(placement)
    limit = placement.target.devices[full].memory_bytes
    spare = limit - placement.peak_memory[full]
    share = f"{size(abs(spare))} ({100 * abs(spare) / max(limit, 1.0):.1f} %)"
    fits = f"Fits, with {share} to spare." if spare >= 0 else f"Does not fit: {share} over."
    span, bound = placement.makespan_us, placement.lower_bound_us
    fastest = max(device.speed for device in placement.target.devices)
    alone = sum(node.compute_us for node in placement.graph.nodes) / fastest
    text = f"{fits} A step takes {seconds(span * 1e-6)}, where no placement takes less than "
    text += f"{seconds(bound * 1e-6)}"
    if len(placement.target.devices) > 1 and span > 0:
        text += (
            f", and one device alone would take {seconds(alone * 1e-6)}, {alone / span:.3g} times"
        )
    return text + "."


def _tiles(placement: Placement) -> tuple[tuple[str, str, str], ...]:
    bound, span = seconds(placement.lower_bound_us * 1e-6), seconds(placement.makespan_us * 1e-6)
    used = len(set(placement.device.values()))
    full = fullest_device(placement)
    limit = size(placement.target.devices[full].memory_bytes)
    return (
        ("makespan", span, f"no placement is below {bound}"),
        ("gap", f"{100 * placement.gap:.2g} %", placement.status),
        ("devices used", str(used), f"of {len(placement.target.devices)}"),
        ("peak memory", size(placement.peak_memory[full]), f"device {full}: budget {limit}"),
        ("algorithm", placement.algorithm, ""),
    )


def _box(node: PlacementNode, placement: Placement, start_us: float, end_us: float) -> Box:
    spent = (end_us - start_us) * 1e-6
    sizes = (
        ("persistent", node.mem_persistent),
        ("output", node.mem_output),
        ("temporary", node.mem_temporary),
    )
    return Box(
        label=node.name or f"operator {node.id}",
        kind="operator",
        stage=placement.device[str(node.id)],
        forward_seconds=0.0 if node.backward else spent,
        backward_seconds=spent if node.backward else 0.0,
        facts=(
            ("operator", str(node.id)),
            ("starts", seconds(start_us * 1e-6)),
            ("takes", seconds(spent)),
            *((name, size(amount)) for name, amount in sizes if amount),
        ),
    )


def _graphs(placement: Placement, execution: PlacementTrace) -> dict[str, BoxGraph]:
    nodes = {node.id: node for node in placement.graph.nodes}
    if has_modules(placement):
        drawn = {
            r.operator: _box(nodes[r.operator], placement, r.start_us, r.end_us)
            for r in execution.runs
        }
        return module_graphs(placement, execution, drawn)
    if len(execution.runs) <= MOST_BOXES:
        return {"": _operators(placement, execution, {r.operator for r in execution.runs})}
    members: dict[tuple[int, int], set[int]] = defaultdict(set)
    width = execution.makespan_us / SLICES
    for r in execution.runs:
        members[min(int(r.start_us / width), SLICES - 1), r.device].add(r.operator)
    places = sorted(members)
    number = {operator: i for i, key in enumerate(places) for operator in members[key]}
    graphs = {
        str(i): _operators(placement, execution, members[key]) for i, key in enumerate(places)
    }
    columns = {part: i for i, part in enumerate(sorted({part for part, _ in places}))}
    boxes = tuple(
        Box(
            f"device {d}, from {seconds(part * width * 1e-6)}",
            "module",
            columns[part],
            i - places.index(next(key for key in places if key[0] == part)),
            f"{len(members[part, d])} operators",
            stage=d,
            inside=str(i),
            forward_seconds=sum(b.forward_seconds for b in graphs[str(i)].boxes),
            backward_seconds=sum(b.backward_seconds for b in graphs[str(i)].boxes),
        )
        for i, (part, d) in enumerate(places)
    )
    ends = {(number[e.src], number[e.dst]) for e in placement.graph.edges}
    edges = tuple(Edge(*pair) for pair in sorted(ends) if places[pair[0]][0] < places[pair[1]][0])
    return {"": BoxGraph(boxes, edges), **graphs}


def _operators(placement: Placement, execution: PlacementTrace, chosen: set[int]) -> BoxGraph:
    """One box each, in the order of their start; data between them."""
    nodes = {node.id: node for node in placement.graph.nodes}
    runs = [r for r in execution.runs if r.operator in chosen]
    number = {r.operator: i for i, r in enumerate(runs)}
    edges = [
        Edge(number[e.src], number[e.dst])
        for e in placement.graph.edges
        if e.src in chosen and e.dst in chosen
    ]
    return arrange((_box(nodes[r.operator], placement, r.start_us, r.end_us) for r in runs), edges)


def _timeline(
    placement: Placement, execution: PlacementTrace, lifetimes: list[MemorySpan]
) -> TimelineChart:
    """The operators of every device and, below, its transfers."""
    count = len(placement.target.devices)
    nodes = {node.id: node for node in placement.graph.nodes}
    events = [
        Event(
            r.device,
            "B" if nodes[r.operator].backward else "F",
            nodes[r.operator].name or str(r.operator),
            *_seconds(r.start_us, r.end_us),
        )
        for r in execution.runs
    ] + [
        Event(
            count + t.sender,
            "T",
            f"{t.source} to device {t.receiver}",
            *_seconds(t.start_us, t.end_us),
        )
        for t in execution.transfers
        if t.end_us > t.start_us
    ]
    rows = [f"device {d}" for d in range(count)] + [f"device {d} sends" for d in range(count)]
    curves = tuple(_curve(memory_levels(lifetimes, d)) for d in range(count))
    return TimelineChart(tuple(rows), tuple(events), curves=curves)


def _curve(points: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Up to the end of the step, where everything is still there."""
    last = points[-2:-1] or [(0.0, 0.0)]
    drawn = [*points[:-1], (points[-1][0], last[0][1])] if points else last
    return tuple((float(f"{us * 1e-6:.7g}"), level) for us, level in drawn)


def _seconds(start_us: float, end_us: float) -> tuple[float, float]:
    """Seven digits draw the same picture in half the bytes."""
    return float(f"{start_us * 1e-6:.7g}"), float(f"{end_us * 1e-6:.7g}")


def _busy(execution: PlacementTrace, d: int) -> Bar:
    compute = sum(r.end_us - r.start_us for r in execution.runs if r.device == d) * 1e-6
    rest = max(0.0, execution.makespan_us * 1e-6 - compute)
    return Bar(f"device {d}", (("compute", compute), ("waiting", rest)), (d, d))


def _devices(placement: Placement, execution: PlacementTrace) -> ReportTable:
    rows: list[tuple[str, ...]] = []
    for d, (device, peak) in enumerate(
        zip(placement.target.devices, placement.peak_memory, strict=True)
    ):
        sent = [t for t in execution.transfers if t.sender == d]
        received = [t for t in execution.transfers if t.receiver == d]
        rows.append(
            (
                f"device {d}",
                str(sum(r.device == d for r in execution.runs)),
                f"{device.speed:g}",
                f"{len(sent)} tensors, {size(sum(t.bytes for t in sent))}",
                f"{len(received)} tensors, {size(sum(t.bytes for t in received))}",
                size(peak),
                size(device.memory_bytes),
            )
        )
    columns = ("device", "operators", "speed", "sends", "receives", "peak memory", "memory")
    return ReportTable(
        "Devices", "and what they send over links", columns, tuple(rows), (1, 2, 3, 4, 5, 6)
    )
