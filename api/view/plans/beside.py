"""Plans beside each other: two with all their differences, more as points of time against memory."""

from __future__ import annotations

from collections.abc import Sequence

from ....cost_model.explain.by_kind import fullest_stage_bytes, paired, seconds_by_kind
from ....cost_model.explain.step_terms import step_term
from ....ir.plan.difference import changed_runs, memory_actions
from ....ir.plan.plan import Plan
from ....ir.text.summary import fullest_stage, one_line, schedule
from ....ir.text.units import gib, seconds
from ..call_names import span_name
from ..report import Pages, PlanComparison, Point
from .from_plan import optimality, report_of_plan, throughput

MOST_DIFFERENCES = 40


def pages_of_plans(plans: Sequence[Plan], names: Sequence[str]) -> Pages:
    """Two plans side by side; of three or more a table and their points, without their reports.

    `names` say where each comes from.
    """
    if len(plans) == 2:
        first, second = plans
        reports = (report_of_plan(first), report_of_plan(second))
        return Pages(reports, _two(first, second, names))
    return Pages((), _several(plans, names))


def _two(first: Plan, second: Plan, names: Sequence[str]) -> PlanComparison:
    rows = zip(_row(first), _row(second), strict=True)
    return PlanComparison(
        title=f"{_models((first, second))}: two plans",
        verdict=_verdict(first, second),
        columns=("", *names),
        rows=tuple((label, one, other) for (label, one), (_, other) in rows),
        seconds=tuple(
            paired(seconds_by_kind(step_term(first)), seconds_by_kind(step_term(second)))
        ),
        memory=tuple(paired(fullest_stage_bytes(first), fullest_stage_bytes(second))),
        differences=tuple(_differences(first, second)[:MOST_DIFFERENCES]),
    )


def _models(plans: Sequence[Plan]) -> str:
    return " and ".join(dict.fromkeys(one_line(plan.model) for plan in plans))


def _verdict(first: Plan, second: Plan) -> str:
    """What a step takes; of unlike batches what a token or sample does."""
    one, other = first.prediction, second.prediction
    what, ratio = "A step", other.step_seconds / one.step_seconds
    tokens = [p.tokens_per_second * p.step_seconds for p in (one, other)]
    if all(tokens) and abs(tokens[0] - tokens[1]) > 0.5:
        what, ratio = "A token", one.tokens_per_second / other.tokens_per_second
    elif first.global_batch != second.global_batch:
        what, ratio = "A sample", one.samples_per_second / other.samples_per_second
    if abs(ratio - 1) < 5e-4:
        return f"{what} takes the same time under both."
    slower, faster = ("second", "first") if ratio > 1 else ("first", "second")
    times = max(ratio, 1 / ratio)
    if times < 2:
        longer = f"{100 * (times - 1):.1f} % longer under the {slower} plan than"
    else:
        longer = f"{times:.3g} times as long under the {slower} plan as"
    return f"{what} takes {longer} under the {faster}."


def _row(plan: Plan) -> tuple[tuple[str, str], ...]:
    fits = "fits" if plan.fits else "too large"
    p, fullest = plan.prediction, fullest_stage(plan)
    peak = gib(plan.stages[fullest].peak_bytes)
    pipeline = f", {schedule(plan)}" if len(plan.stages) > 1 else ""
    return (
        ("strategy", plan.strategy_text),
        ("cluster", f"{plan.cluster.name}, {plan.mesh.size:,} devices"),
        ("global batch", f"{plan.global_batch:,} samples"),
        ("step", seconds(p.step_seconds)),
        ("throughput", "{} {}".format(*throughput(plan))),
        ("peak memory", f"{peak} of {gib(plan.memory_limit_of(fullest))}, {fits}"),
        ("micro-batches", f"{plan.micro_batches}{pipeline}"),
        ("activations", memory_actions(plan).replace("+", ", ")),
        ("MFU, bubble", f"{100 * p.mfu:.1f} %, {100 * p.bubble:.1f} %"),
        ("optimality", optimality(plan)),
    )


def _differences(first: Plan, second: Plan) -> list[tuple[str, str, str]]:
    if first.model_digest != second.model_digest:
        return []
    return [
        (span_name(first.calls[run.first : run.last]), run.before, run.after)
        for run in changed_runs(first, second)
    ]


def _verdict_of_several(plans: Sequence[Plan], names: Sequence[str]) -> str:
    """Which plan is the fastest that fits, and which needs the least memory, of one model and batch."""
    text = "Every plan as its step time against its peak memory."
    fitting = [(plan, name) for plan, name in zip(plans, names, strict=True) if plan.fits]
    if not fitting or len({(plan.model_digest, plan.global_batch) for plan in plans}) > 1:
        return text
    fastest, quick = min(fitting, key=lambda pair: pair[0].prediction.step_seconds)
    smallest, small = min(fitting, key=lambda pair: pair[0].peak_bytes)
    step = seconds(fastest.prediction.step_seconds)
    least = "it also" if quick == small else small
    return (
        f"{text} Of those that fit {quick} is the fastest ({step}); "
        f"{least} needs the least memory ({gib(smallest.peak_bytes)})."
    )


def _several(plans: Sequence[Plan], names: Sequence[str]) -> PlanComparison:
    columns = ("plan", *(label for label, _ in _row(plans[0])))
    rows = tuple(
        (name, *(text for _, text in _row(plan))) for name, plan in zip(names, plans, strict=True)
    )
    limits = {plan.memory_limit_of(fullest_stage(plan)) for plan in plans}
    return PlanComparison(
        title=f"{_models(plans)}: {len(plans)} plans",
        verdict=_verdict_of_several(plans, names)
        + ("" if len(limits) == 1 else " Their budgets differ."),
        columns=columns,
        rows=rows,
        points=tuple(
            Point(name, plan.prediction.step_seconds, plan.peak_bytes, plan.fits)
            for name, plan in zip(names, plans, strict=True)
        ),
        memory_limit_bytes=limits.pop() if len(limits) == 1 else 0,
    )
