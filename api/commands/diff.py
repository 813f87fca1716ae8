"""`plait diff`: two plans side by side, and what others would do with the same model and cluster."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...cost_model.explain.step_terms import step_term
from ...cost_model.explain.term import Term
from ...ir.errors import MismatchError, UsageError
from ...ir.model import Model
from ...ir.plan.plan import Layers, Plan
from ...ir.text.printer import gib, seconds, size
from .common import load_model, show

DEEPEST = 3  # levels of a plan's tree whose terms are compared
ROUNDED = 5e-4  # relative: a difference that would read 0.0 %


def run(options: argparse.Namespace) -> int:
    from ..plan_object import load_plan

    plan = load_plan(options.plan)
    if (options.other is None) == (options.against is None):
        raise UsageError("name a second plan, or baselines with --against")
    if options.against:
        found = against(plan, options.against, options)
        rows = [row_json(plan, name, rival) for name, rival in found]
        if options.json:
            show({"plan": figures(plan), "baselines": rows})
        else:
            print("\n".join(table(plan, found)))
        return 0
    other = load_plan(options.other)
    if options.json:
        show(versus_json(plan, other))
    else:
        print("\n".join([versus(plan, other), *changed(plan, other)]))
    return 0


def against(plan: Plan, text: str, options: argparse.Namespace) -> list[tuple[str, Plan | None]]:
    """The plans of baselines for the model, cluster, batch and budget of a plan."""
    from ...planner.options import PlanOptions
    from ...planner.search.baselines import parse_baselines, rival
    from ...planner.search.driver import Space

    asked = parse_baselines(text, plan.cluster)
    space = Space.of(
        model_of(plan, options),
        plan.cluster,
        PlanOptions(
            memory_bytes=plan.budget_bytes, precision=plan.precision, optimizer=plan.optimizer.name
        ),
    )
    return [(baseline.name, rival(space, baseline)) for baseline in asked]


def instead(plan: Plan, word: str, options: argparse.Namespace) -> Plan:
    """The same model, cluster and batch under one strategy, whether it fits or not."""
    ((_, found),) = against(plan, f"word:{word}", options)
    if found is None:
        raise UsageError(f"{plan.model} cannot be split as {word}")
    return found


def model_of(plan: Plan, options: argparse.Namespace) -> Model:
    """The model of a plan, as the plan runs it."""
    from ...ir.lowering.cast import in_precision

    source = source_of(plan, options)
    model = load_model(source, plan.global_batch)
    if model.fingerprint() != plan.model_digest:
        raise MismatchError(f"{source.source} is not the model of the plan ({plan.model})")
    return in_precision(model, plan.precision)


def figures(plan: Plan) -> dict[str, Any]:
    """A plan in a line."""
    peak = plan.peak_bytes
    return {
        "word": plan.word,
        "micro_batches": plan.micro_batches,
        "memory": memory_of(plan),
        "step_time_s": plan.prediction.step_seconds,
        "peak": peak,
        "budget": plan.budget_bytes,
        "fits": peak <= plan.budget_bytes,
    }


def row_json(plan: Plan, name: str, rival: Plan | None) -> dict[str, Any]:
    if rival is None:
        return {"name": name, "possible": False}
    ratio = rival.prediction.step_seconds / plan.prediction.step_seconds
    return {"name": name, "possible": True, **figures(rival), "times_as_long": ratio}


def table(plan: Plan, found: Iterable[tuple[str, Plan | None]]) -> Iterator[str]:
    """The plan and its baselines, one a line."""
    yield f"{'':<24}{'step':>10}{'of plan':>9}{'peak':>12}  strategy"
    for name, rival in [("plan", plan), *found]:
        if rival is None:
            yield f"{name:<24}{'-':>10}{'-':>9}{'-':>12}  the model cannot be split so"
            continue
        own = figures(rival)
        ratio = own["step_time_s"] / plan.prediction.step_seconds
        fits = "" if own["fits"] else f"  does not fit: has {gib(plan.budget_bytes)}"
        yield (
            f"{name:<24}{seconds(own['step_time_s']):>10}{ratio:>8.2f}x{gib(own['peak']):>12}  "
            f"{own['word']}, {own['micro_batches']} micro-batches, {own['memory']}{fits}"
        )


def changed(plan: Plan, other: Plan) -> Iterator[str]:
    """Runs of calls that do something else, where both plans are of one model."""
    if plan.model_digest != other.model_digest:
        yield f"\nplans of two models: {plan.model}, {other.model}"
        return
    runs: list[tuple[int, int, str]] = []
    for i in range(plan.layers[-1].last):
        says, instead = (doing(p, p.layers_of(i)) for p in (plan, other))
        text = f"{says} -> {instead}"
        if says == instead:
            continue
        if runs and runs[-1][1:] == (i, text):
            runs[-1] = (runs[-1][0], i + 1, text)
        else:
            runs.append((i, i + 1, text))
    yield ""
    yield "layers that differ" if runs else "all layers do the same"
    for first, last, text in runs:
        ends = dict.fromkeys((plan.calls[first], plan.calls[last - 1]))
        yield f"  {' to '.join(ends):<40}{text}"


def doing(plan: Plan, layers: Layers) -> str:
    return f"{plan.strategy_of(layers)} {layers.memory}"


def source_of(plan: Plan, options: argparse.Namespace) -> argparse.Namespace:
    """Where to read the model: as asked, or the file that the plan names. Raises UsageError where
    the plan names code, which a plan must not run."""
    given = {"source": options.model, "batch": options.batch, "seq": options.seq}
    if options.model is None:
        try:
            found = json.loads(plan.source or "{}")
        except ValueError:
            found = {}
        given |= found if isinstance(found, dict) else {}
    name = given["source"]
    if not isinstance(name, str) or (options.model is None and not name.endswith(".json")):
        hint = f" {name}" if isinstance(name, str) else ""
        raise UsageError(f"the model is needed again: name it with --model{hint}")
    return argparse.Namespace(**given)


def versus(plan: Plan, rival: Plan) -> str:
    """What a rival costs more, term by term."""
    ours, theirs = step_term(plan), step_term(rival)
    slower = theirs.value / ours.value - 1
    peak = rival.peak_bytes
    fits = peak <= plan.budget_bytes
    verdict = "as fast"
    if abs(slower) >= ROUNDED:
        verdict = f"{abs(slower):.1%} {'slower' if slower > 0 else 'faster'}"
    if not fits:
        short = f"needs {gib(peak)}, has {gib(plan.budget_bytes)}"
        verdict += f", and does not fit: {short}"
    lines = [
        f"{rival.word} ({rival.micro_batches} micro-batches, {memory_of(rival)}) instead of "
        f"{plan.word} ({plan.micro_batches} micro-batches, {memory_of(plan)}): {verdict}",
        "",
        f"{'seconds':<38}{'plan':>12}{'instead':>12}{'more':>12}",
    ]
    lines += [
        f"{name:<38}{seconds(a):>12}{seconds(b):>12}{signed(b - a, seconds):>12}"
        for name, a, b in rows(by_kind(ours), by_kind(theirs))
    ]
    lines += ["", f"{'bytes, fullest stage':<38}{'plan':>12}{'instead':>12}{'more':>12}"]
    lines += [
        f"{name:<38}{size(a):>12}{size(b):>12}{signed(b - a, size):>12}"
        for name, a, b in rows(fullest(plan), fullest(rival))
    ]
    return "\n".join(lines)


def versus_json(plan: Plan, rival: Plan) -> dict[str, Any]:
    peak = rival.peak_bytes
    return {
        "word": rival.word,
        "instead_of": plan.word,
        "micro_batches": rival.micro_batches,
        "step_time_s": rival.prediction.step_seconds,
        "plan_step_time_s": plan.prediction.step_seconds,
        "peak": peak,
        "budget": plan.budget_bytes,
        "fits": peak <= plan.budget_bytes,
        "seconds": {
            n: [a, b] for n, a, b in rows(by_kind(step_term(plan)), by_kind(step_term(rival)))
        },
        "bytes": {n: [a, b] for n, a, b in rows(fullest(plan), fullest(rival))},
    }


def memory_of(plan: Plan) -> str:
    return "+".join(sorted({x.memory for x in plan.layers if not x.once}))


def by_kind(step: Term) -> dict[str, float]:
    """Seconds of a step by kind of operator, collective and wait."""
    found: dict[str, float] = {}

    def gather(term: Term, depth: int) -> None:
        if not term.parts or depth == DEEPEST or " over " in term.name or " of " in term.name:
            found[term.name] = found.get(term.name, 0.0) + term.value
            return
        for part in term.parts:
            gather(part, depth + 1)

    gather(step, 0)
    return found


def fullest(plan: Plan) -> dict[str, float]:
    stage = max(plan.stages, key=lambda s: s.peak_bytes)
    return {name: float(amount) for name, amount in stage.memory}


def rows(
    ours: Mapping[str, float], theirs: Mapping[str, float]
) -> Iterable[tuple[str, float, float]]:
    """Terms of both, the greatest difference first, and their sums."""
    found = [(n, ours.get(n, 0.0), theirs.get(n, 0.0)) for n in dict.fromkeys([*ours, *theirs])]
    found = sorted((r for r in found if r[1] or r[2]), key=lambda r: -abs(r[2] - r[1]))
    return [*found, ("sum", sum(ours.values()), sum(theirs.values()))]


def signed(change: float, form: Any) -> str:
    return f"{'+' if change >= 0 else '-'}{form(abs(change))}"
