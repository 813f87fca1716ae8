"""The report of a plan: its layers, memory, step, timeline and alternatives."""

from __future__ import annotations

from ...cost_model.communication.stage_transfer import plan_transfers
from ...cost_model.operators.operator_cost import Pricer
from ...ir.analysis.bound_sharding import bind
from ...ir.analysis.dataflow import analyse_dataflow
from ...ir.lowering.localize import localize
from ...ir.model.mesh import MICRO, Axis, Mesh
from ...ir.model.model import Model
from ...ir.plan.groups.schedule import neighbours, tiles_of
from ...ir.plan.plan import Layers, Plan
from ...ir.text.summary import one_line, schedule
from ...ir.text.units import gib, seconds
from .from_model import data_edges
from .from_schedule import step_parts, timeline_of
from .layout import arrange
from .module_graph import Inside
from .price import on_a_device
from .report import Bar, Box, Edge, Facts, Report, ReportTable

ALTERNATIVES = 10


def report_of_plan(plan: Plan, model: Model | None = None) -> Report:
    """The report of a plan; with its model, boxes open to show the operators of one device.

    The model must be in the plan's precision and have its global batch.
    """
    insides = _insides(plan, model) if model else {}
    boxes = tuple(_box(plan, x, insides.get(x.sharding)) for x in plan.layers)
    graphs = {key: g for inside in insides.values() for key, g in inside.graphs.items()}
    stages = range(len(plan.stages))
    return Report(
        title=one_line(plan.model),
        subtitle=f"{plan.cluster}, {plan.precision}, {plan.optimizer.name}",
        tiles=_tiles(plan),
        graphs={"": arrange(boxes, _edges(plan, model)), **graphs},
        modes=("stage", "strategy", "time"),
        stages=len(plan.stages),
        memory_limit_bytes=plan.memory_limit_bytes,
        memory=tuple(
            Bar(_stage_name(plan, i), tuple((n, float(b)) for n, b in plan.stages[i].memory_terms))
            for i in stages
        ),
        step=tuple(Bar(_stage_name(plan, i), step_parts(plan, i)) for i in stages),
        timeline=timeline_of(plan),
        tables=(_strategies(plan), _alternatives(plan)),
    )


def _tiles(plan: Plan) -> tuple[tuple[str, str, str], ...]:
    p, peak = plan.prediction, plan.peak_bytes
    fits = "fits" if plan.fits else "too large"
    optimality = plan.status if not plan.gap else f"within {100 * plan.gap:.2g} %"
    tokens = p.tokens_per_second > 0
    rate = p.tokens_per_second if tokens else p.samples_per_second
    micro = f"{plan.micro_batches} micro-batch" + ("es" if plan.micro_batches > 1 else "")
    return (
        ("step", seconds(p.step_seconds), f"global batch {plan.global_batch}"),
        ("throughput", f"{rate:,.0f}", "tokens per second" if tokens else "samples per second"),
        ("MFU", f"{100 * p.mfu:.1f} %", "of peak rate"),
        ("peak memory", gib(peak), f"{fits}: budget {gib(plan.memory_limit_bytes)}"),
        ("bubble", f"{100 * p.bubble:.1f} %", f"{micro}, {schedule(plan)}"),
        ("strategy", plan.strategy_text, f"{optimality} under the cost model"),
    )


def _stage_name(plan: Plan, number: int) -> str:
    ranks = plan.ranks_of(number)
    first, last = ranks[0], ranks[-1]
    kind = f" · {plan.cluster_of(number).device.kind}" if plan.groups else ""
    span = f"ranks {first}–{last}" if len(ranks) > 1 else f"rank {first}"
    return f"stage {number} · {span}{kind}"


def _busy(layers: Layers) -> float:
    return (layers.forward_seconds + layers.backward_seconds) * (layers.last - layers.first)


def _stage_of(plan: Plan, layers: Layers) -> int:
    return plan.stage_of_layers(layers)


def _insides(plan: Plan, model: Model) -> dict[int, Inside]:
    """The per-device program of every sharding that the plan uses, by its number."""
    axes = analyse_dataflow(model).axes
    insides: dict[int, Inside] = {}
    for number in sorted({x.sharding for x in plan.layers}):
        sharding = plan.shardings[number]
        function, known = model.function(sharding.function), axes[sharding.function]
        bound = bind(sharding, function, known)
        stage = next(plan.stage_of_layers(x) for x in plan.layers if x.sharding == number)
        local, pricer = localize(bound), Pricer(plan.cluster_of(stage), _in_space(sharding.mesh))
        insides[number] = Inside(local, on_a_device(local, bound, pricer), str(number))
    return insides


def _in_space(mesh: Mesh) -> Mesh:
    """The mesh with one micro-batch: those follow each other in time, ranks do not count them."""
    return Mesh(tuple(Axis(a.name, 1) if a.name == MICRO else a for a in mesh.axes))


def _box(plan: Plan, layers: Layers, inside: Inside | None) -> Box:
    sharding = plan.shardings[layers.sharding]
    calls, total = layers.last - layers.first, sum(map(_busy, plan.layers))
    span = f"{layers.first} to {layers.last - 1}" if calls > 1 else f"{layers.first}"
    share = f"{100 * _busy(layers) / total:.1f} %" if total else "0 %"
    return Box(
        label=sharding.function,
        kind="call",
        times=calls,
        about=seconds(_busy(layers)) if _busy(layers) else "once per step",
        stage=_stage_of(plan, layers),
        strategy=f"{sharding.strategy}, {layers.memory}",
        forward_seconds=layers.forward_seconds,
        backward_seconds=layers.backward_seconds,
        communication_seconds=inside.communication_seconds if inside else -1.0,
        facts=(
            ("calls", span),
            ("strategy", str(sharding.strategy)),
            ("activations", str(layers.memory)),
            ("forward each", seconds(layers.forward_seconds)),
            ("backward each", seconds(layers.backward_seconds)),
            ("share of all stages", share),
            *_splits(plan, layers),
        ),
        inside=str(layers.sharding) if inside else "",
    )


def _splits(plan: Plan, layers: Layers) -> Facts:
    """Numbers of operators that each mesh axis splits."""
    sharding = plan.shardings[layers.sharding]
    facts: list[tuple[str, str]] = []
    for i, axis in enumerate(sharding.mesh.axes):
        if axis.size > 1 and axis.name != MICRO:
            split = sum(not splits[i].replicates for splits in sharding.op_splits)
            facts.append((f"{axis.name} splits", f"{split} of {len(sharding.op_splits)} operators"))
    return tuple(facts)


def _edges(plan: Plan, model: Model | None) -> list[Edge]:
    """Data between runs of layers; where a stage ends, with the bytes that a device sends on."""
    if plan.groups:
        return _group_edges(plan)
    runs = [(x.first, x.last) for x in plan.layers]
    batch_only = model.batch_only_calls() if model else frozenset[int]()
    edges = data_edges(model, runs) if model else [Edge(i, i + 1) for i in range(len(runs) - 1)]
    labelled: list[Edge] = []
    transfers = plan_transfers(plan)
    for edge in edges:
        one, other = (_stage_of(plan, plan.layers[i]) for i in (edge.source, edge.target))
        sent = one != other and plan.layers[edge.source].first not in batch_only
        text = _megabytes(transfers[one].sent_bytes) if sent else ""
        labelled.append(Edge(edge.source, edge.target, text))
    return labelled


def _group_edges(plan: Plan) -> list[Edge]:
    """Data from every run of layers to those that begin where it ends, in its group or the next."""
    joined = [set(n.after.values()) for n in neighbours(tiles_of(plan))]
    edges: list[Edge] = []
    for i, x in enumerate(plan.layers):
        for j, y in enumerate(plan.layers):
            one, other = _stage_of(plan, x), _stage_of(plan, y)
            if x.last == y.first and (one == other or other in joined[one]):
                sent = plan.stages[one].transfer_bytes if one != other else 0
                edges.append(Edge(i, j, _megabytes(sent) if sent else ""))
    return edges


def _megabytes(amount: int) -> str:
    return f"{amount / 1e6:.3g} MB" if amount < 1e9 else f"{amount / 1e9:.3g} GB"


def _strategies(plan: Plan) -> ReportTable:
    rows = tuple(
        (
            str(_stage_of(plan, x)),
            plan.shardings[x.sharding].function,
            str(x.last - x.first),
            str(plan.shardings[x.sharding].strategy),
            str(x.memory),
            seconds(x.forward_seconds),
            seconds(x.backward_seconds),
        )
        for x in plan.layers
    )
    columns = (
        "stage",
        "layers",
        "count",
        "strategy",
        "activations",
        "forward each",
        "backward each",
    )
    return ReportTable("Strategy", "one line per run of equal layers", columns, rows, (2, 5, 6))


def _alternatives(plan: Plan) -> ReportTable:
    step = plan.prediction.step_seconds
    rows = tuple(
        (
            a.name,
            str(a.micro_batches),
            a.memory,
            seconds(a.step_seconds),
            f"{100 * (a.step_seconds / step - 1):+.1f} %" if step else "",
            gib(a.peak_bytes),
            "fits" if a.fits else "too large",
        )
        for a in plan.alternatives[:ALTERNATIVES]
    )
    columns = (
        "strategy",
        "micro-batches",
        "activations",
        "step",
        "against this",
        "peak memory",
        "",
    )
    hint = "the next best, under the same cost model"
    return ReportTable("What else was priced", hint, columns, rows, (1, 3, 4, 5))
