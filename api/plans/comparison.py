"""Two plans of one model, term by term: what one costs more than the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...cost_model.explain.by_kind import fullest_stage_bytes, paired, seconds_by_kind
from ...cost_model.explain.step_terms import step_term
from ...ir.errors import UsageError
from ...ir.model.model import Model
from ...ir.plan.difference import changed_runs, memory_actions
from ...ir.plan.plan import Plan
from ...ir.text.units import gib, micro_batches, seconds, size
from ...planner.question.options import PlanOptions
from ...planner.question.training import training_of_plan
from ...planner.search.baselines import Baseline, baseline_plan, parse_baselines
from ...planner.search.driver import SearchSpace
from ...planner.search.price_cache import PriceCache

NEGLIGIBLE = 5e-4  # relative: a difference that would read 0.0 %


def baseline_plans(
    plan: Plan, model: Model, baselines: Iterable[Baseline], prices: PriceCache | None = None
) -> list[tuple[str, Plan | None]]:
    """The plans of baselines for the model, cluster, batch, memory limit and engine of a plan."""
    training = training_of_plan(plan)
    options = PlanOptions(memory_bytes=plan.memory_limit_bytes, engine=plan.engine, **training)
    space = SearchSpace.create(model, plan.cluster, options, prices)
    return [(baseline.name, baseline_plan(space, baseline)) for baseline in baselines]


def plan_with_strategy(plan: Plan, model: Model, strategy_text: str) -> Plan:
    """The same model, cluster and batch under one strategy, whether it fits or not."""
    baselines = parse_baselines(f"word:{strategy_text}", plan.cluster)
    ((_, other),) = baseline_plans(plan, model, baselines)
    if other is None:
        raise UsageError(f"{plan.model} cannot be split as {strategy_text}")
    return other


def plan_row(plan: Plan) -> dict[str, Any]:
    """A plan in a row of figures, under the names of `plait diff --json`."""
    peak = plan.peak_bytes
    return {
        "word": plan.strategy_text,
        "micro_batches": plan.micro_batches,
        "memory": memory_actions(plan),
        "step_time_s": plan.prediction.step_seconds,
        "peak": peak,
        "budget": plan.memory_limit_bytes,
        "fits": plan.fits,
    }


def layer_differences(plan: Plan, other: Plan) -> Iterator[str]:
    """Runs of calls that two plans of one model treat differently."""
    if plan.model_digest != other.model_digest:
        yield f"\nplans of two models: {plan.model}, {other.model}"
        return
    runs = changed_runs(plan, other)
    yield ""
    yield "layers that differ" if runs else "all layers do the same"
    for run in runs:
        ends = dict.fromkeys((plan.calls[run.first], plan.calls[run.last - 1]))
        yield f"  {' to '.join(ends):<40}{run.before} -> {run.after}"


def comparison(plan: Plan, other: Plan) -> str:
    """Seconds and bytes that another plan costs more, term by term, as text."""
    ours, theirs = step_term(plan), step_term(other)
    lines = [
        f"{_headline(other)} instead of {_headline(plan)}: "
        + _verdict(plan, other, theirs.value / ours.value - 1),
        "",
        f"{'seconds':<38}{'plan':>12}{'instead':>12}{'more':>12}",
    ]
    lines += [
        f"{name:<38}{seconds(a):>12}{seconds(b):>12}{_signed(b - a, seconds):>12}"
        for name, a, b in paired(seconds_by_kind(ours), seconds_by_kind(theirs))
    ]
    lines += ["", f"{'bytes, fullest stage':<38}{'plan':>12}{'instead':>12}{'more':>12}"]
    lines += [
        f"{name:<38}{size(a):>12}{size(b):>12}{_signed(b - a, size):>12}"
        for name, a, b in paired(fullest_stage_bytes(plan), fullest_stage_bytes(other))
    ]
    return "\n".join(lines)


def _headline(plan: Plan) -> str:
    return f"{plan.strategy_text} ({micro_batches(plan.micro_batches)}, {memory_actions(plan)})"


def _verdict(plan: Plan, other: Plan, slower: float) -> str:
    """`slower`: relative to the plan's step."""
    verdict = "as fast"
    if abs(slower) >= NEGLIGIBLE:
        verdict = f"{abs(slower):.1%} {'slower' if slower > 0 else 'faster'}"
    peak = other.peak_bytes
    if not other.fits:
        verdict += f", and does not fit: needs {gib(peak)}, has {gib(plan.memory_limit_bytes)}"
    return verdict


def comparison_json(plan: Plan, other: Plan) -> dict[str, Any]:
    """The same as data; every pair is the plan's amount, then the other's."""
    peak = other.peak_bytes
    times = paired(seconds_by_kind(step_term(plan)), seconds_by_kind(step_term(other)))
    sizes = paired(fullest_stage_bytes(plan), fullest_stage_bytes(other))
    return {
        "word": other.strategy_text,
        "instead_of": plan.strategy_text,
        "micro_batches": other.micro_batches,
        "step_time_s": other.prediction.step_seconds,
        "plan_step_time_s": plan.prediction.step_seconds,
        "peak": peak,
        "budget": plan.memory_limit_bytes,
        "fits": other.fits,
        "seconds": {name: [a, b] for name, a, b in times},
        "bytes": {name: [a, b] for name, a, b in sizes},
    }


def _signed(change: float, format_amount: Callable[[float], str]) -> str:
    return f"{'+' if change >= 0 else '-'}{format_amount(abs(change))}"
