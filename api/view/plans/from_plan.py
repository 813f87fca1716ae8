"""The report of a plan: whether it fits, why it is the plan, its layers, timeline and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from ....cost_model.explain.by_kind import exposed_step_seconds
from ....cost_model.explain.confidence import step_range
from ....cost_model.explain.step_terms import step_term
from ....cost_model.operators.operator_cost import Pricer
from ....ir.analysis.bound_sharding import bind
from ....ir.analysis.dataflow import analyse_dataflow
from ....ir.lowering.localize import localize
from ....ir.model.mesh import MICRO, Axis, Mesh
from ....ir.model.model import Model
from ....ir.plan.plan import Plan
from ....ir.text.summary import fullest_stage, one_line, schedule
from ....ir.text.units import gib, micro_batches, seconds, size
from ..call_names import ranges
from ..module_graph import Inside
from ..price import on_a_device
from ..report import Bar, Report, ReportTable
from .from_schedule import stage_name, step_parts, timeline_of
from .plan_graph import PlanGraph, strategy_rows
from .rivals import points_of, reasons_of, rivals_of

SAME = 0.01  # relative: bars of neighbouring stages that differ by less are drawn as one
BINDING_TERMS = 3


def report_of_plan(plan: Plan, model: Model | None = None) -> Report:
    """The report of a plan; with its model, boxes open to show the operators of one device.

    The model must be in the plan's precision and have its global batch.
    """
    memory = [tuple((n, float(b)) for n, b in stage.memory_terms) for stage in plan.stages]
    fullest = fullest_stage(plan)
    graph = PlanGraph(plan, model, _insides(plan, model) if model else {})
    return Report(
        title=one_line(plan.model),
        subtitle=_subtitle(plan),
        verdict=_verdict(plan),
        fits=plan.fits,
        headroom=Bar(f"fullest device, stage {fullest}", memory[fullest]),
        tiles=_tiles(plan, fullest),
        reasons=reasons_of(plan),
        rivals=rivals_of(plan),
        points=points_of(plan),
        graphs=graph.graphs,
        modes=("stage", "strategy", "time"),
        stages=len(plan.stages),
        stage_names=_stage_names(plan),
        memory_limit_bytes=plan.memory_limit_of(fullest),
        memory=_with_limits(plan, _bars(plan, lambda s: memory[s])),
        step=_bars(plan, lambda s: step_parts(plan, s)),
        timeline=timeline_of(plan),
        tables=(_strategies(plan), *_host_memory(plan), *_compression(plan)),
    )


def _subtitle(plan: Plan) -> str:
    engine = f", engine {plan.engine}" if plan.engine != "plait" else ""
    return (
        f"{plan.strategy_text} on {plan.cluster.name} ({plan.cluster.devices:,} devices), "
        f"{plan.precision}, {plan.optimizer.name}{engine}"
    )


def _verdict(plan: Plan) -> str:
    """Whether it fits, how long a step takes and how sure that is, and what binds, in two sentences."""
    step = plan.prediction.step_seconds
    number = fullest_stage(plan)
    limit = plan.memory_limit_of(number)
    spare = limit - plan.stages[number].peak_bytes
    share = 100 * abs(spare) / limit
    fits = f"Fits, with {size(spare)} ({share:.1f} %) to spare."
    if spare < 0:
        fits = f"Does not fit: {size(-spare)} ({share:.1f} %) over the budget of stage {number}."
    binding = ", ".join(f"{name} {100 * t / step:.0f} %" for name, t in binding_terms(plan))
    low, high = map(seconds, step_range(step))
    return (
        f"{fits} A step takes {seconds(step)}, between {low} and {high} in four of five cases. "
        f"Its largest terms: {binding}."
    )


def binding_terms(plan: Plan) -> list[tuple[str, float]]:
    """The largest terms of a step, in seconds."""
    terms = exposed_step_seconds(step_term(plan)).items()
    return sorted(terms, key=lambda item: -item[1])[:BINDING_TERMS]


def _tiles(plan: Plan, fullest: int) -> tuple[tuple[str, str, str], ...]:
    p, step, peak = plan.prediction, plan.prediction.step_seconds, plan.stages[fullest].peak_bytes
    fits = "fits" if plan.fits else "too large"
    searched = "" if plan.complete else ", search was stopped"
    pipeline = f", {schedule(plan)}" if len(plan.stages) > 1 else ""
    micro = micro_batches(plan.micro_batches) + pipeline
    return (
        ("peak memory", gib(peak), f"{fits}: budget {gib(plan.memory_limit_of(fullest))}"),
        ("step", seconds(step), " to ".join(map(seconds, step_range(step)))),
        ("throughput", *throughput(plan)),
        ("MFU", f"{100 * p.mfu:.1f} %", "of peak rate"),
        ("bubble", f"{100 * p.bubble:.1f} %", micro),
        ("global batch", f"{plan.global_batch:,}", "samples"),
        ("optimality", optimality(plan), f"under the cost model{searched}"),
    )


def throughput(plan: Plan) -> tuple[str, str]:
    """A number and its unit: tokens, of models that have none samples, per second."""
    p = plan.prediction
    if p.tokens_per_second > 0:
        return f"{p.tokens_per_second:,.0f}", "tokens per second"
    rate = p.samples_per_second
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}", "samples per second"


def optimality(plan: Plan) -> str:
    return f"within {100 * plan.gap:.2g} %" if plan.gap else plan.status


def _bars(plan: Plan, parts_of: Callable[[int], tuple[tuple[str, float], ...]]) -> tuple[Bar, ...]:
    """A bar a stage; neighbours with the same amounts, in about the same parts, share one, and so do
    device groups of one kind, which are in several pipelines."""
    runs: list[list[int]] = []
    for stage in range(len(plan.stages)):
        groups = plan.groups
        near = [r for r in runs if groups[r[0]].part == groups[stage].part] if groups else runs[-1:]
        same = (run for run in near if _same_parts(parts_of(run[0]), parts_of(stage)))
        run = next(same, None)
        if run is None:
            runs.append([stage])
        else:
            run.append(stage)
    return tuple(
        Bar(_stages_name(plan, run), parts_of(_largest(run, parts_of)), tuple(run)) for run in runs
    )


def _with_limits(plan: Plan, bars: tuple[Bar, ...]) -> tuple[Bar, ...]:
    """Bars of device groups with the budget of each."""
    if not plan.groups:
        return bars
    return tuple(replace(b, limit_bytes=plan.memory_limit_of(b.stages[0])) for b in bars)


def _stage_names(plan: Plan) -> tuple[str, ...]:
    return tuple(stage_name(plan, n) for n in range(len(plan.stages))) if plan.groups else ()


def _largest(run: Sequence[int], parts_of: Callable[[int], tuple[tuple[str, float], ...]]) -> int:
    return max(run, key=lambda s: sum(amount for _, amount in parts_of(s)))


def _same_parts(one: tuple[tuple[str, float], ...], other: tuple[tuple[str, float], ...]) -> bool:
    first, second, total = dict(one), dict(other), sum(amount for _, amount in one)
    names = {*first, *second}
    return all(abs(first.get(n, 0.0) - second.get(n, 0.0)) <= SAME * total for n in names)


def _stages_name(plan: Plan, run: Sequence[int]) -> str:
    first, last = plan.ranks_of(run[0])[0], plan.ranks_of(run[-1])[-1]
    name = f"stage {run[0]}" if len(run) == 1 else f"stages {ranges(run)}"
    if run[-1] - run[0] >= len(run):
        return f"{name} · {plan.cluster_of(run[0]).device.kind}"
    span = f"ranks {first:,}–{last:,}" if last > first else f"rank {first}"
    kind = f" · {plan.cluster_of(run[0]).device.kind}" if plan.groups else ""
    return f"{name} · {span}{kind}"


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


def _strategies(plan: Plan) -> ReportTable:
    columns = (
        "modules",
        "count",
        "stages",
        "strategy",
        "activations",
        "forward each",
        "backward each",
    )
    hint = "one line per decision; equal layers of all stages and chunks are together"
    return ReportTable("Strategy", hint, columns, tuple(strategy_rows(plan)), (1, 5, 6))


def _host_memory(plan: Plan) -> tuple[ReportTable, ...]:
    amounts = [stage.host_bytes for stage in plan.stages]
    if not any(amounts):
        return ()
    fullest = amounts.index(max(amounts))
    row = (f"stage {fullest}", size(amounts[fullest]), size(plan.cluster.device.host_memory_bytes))
    columns = ("fullest stage", "in host memory, per device", "of")
    hint = "activations that are offloaded until backward, and what an optimizer steps on there"
    return (ReportTable("Host memory", hint, columns, (row,), (1, 2)),)


def _compression(plan: Plan) -> tuple[ReportTable, ...]:
    rows = tuple((c.subject, c.role, c.program, str(c.strategy)) for c in plan.compression)
    columns = ("what is sent", "over", "compressed by", "layers under")
    hint = "these messages travel compressed"
    return (ReportTable("Compressed communication", hint, columns, rows),) if rows else ()
