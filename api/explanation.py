"""`plait explain`: the terms behind a plan as text or JSON, and why another strategy is worse."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isclose
from typing import Any

import msgspec

from ..cost_model.breakdown import label, piece_term, runs, stage_times, step_term
from ..cost_model.held import LEGEND, memory_term
from ..cost_model.terms import Symbol, Term, legend, total
from ..ir.errors import InfeasibleError, MismatchError, UsageError
from ..ir.plan import Layers, Plan
from ..ir.text import gib, one_line, print_plan, seconds, size

DEEPEST = 3  # levels of a whole plan's tree on a screen; WHERE shows all of its part
UNLIMITED = 1 << 59


def explain(plan: Plan, where: str | None = None, *, memory: bool = False) -> str:
    """The terms of a plan as text: name, value, formula, and where its numbers come from.

    `where` names calls (`model.layers.3`, `block.3`), functions (`block*`) or stages (`stage0`).
    `memory` shows bytes per stage (default: seconds). Raises UsageError when nothing matches.
    """
    found = terms(plan, where, memory)
    deepest = DEEPEST if where is None else 99
    used = {name for term in found for name in names_in(term)}
    shown = [s for s in symbols(plan) if s.name in used]
    notes = Notes()
    lines = [line for term in found for line in tree(term, deepest, notes)]
    lines += differences(plan)
    lines += ["", "symbols", *(symbol_line(s, notes) for s in shown)]
    lines += ["", "sources", *(f"  [{n}] {text}" for text, n in notes.numbers.items())]
    return "\n".join(lines)


def differences(plan: Plan) -> list[str]:
    """What a plan says of itself that its terms do not add up to: it was edited, or written by hand."""
    pairs: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("step", plan.prediction.step_seconds, step_term(plan).value, seconds)
    ]
    pairs += [
        (f"stage {s}", stage.peak_bytes, memory_term(plan, s).value, size)
        for s, stage in enumerate(plan.stages)
    ]
    return [
        f"note: {name}: the plan says {form(said)}, its terms add up to {form(found)}"
        for name, said, found, form in pairs
        if not isclose(said, found, rel_tol=1e-6)
    ]


class Notes:
    """Sources by number, in the order of their first use."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def of(self, source: str) -> str:
        return f"[{self.numbers.setdefault(source, len(self.numbers) + 1)}]" if source else ""


def terms(plan: Plan, where: str | None, memory: bool) -> list[Term]:
    """The trees that answer a question."""
    stages = range(len(plan.stages))
    if where is None:
        return [memory_term(plan, s) for s in stages] if memory else [step_term(plan)]
    chosen = [s for s in stages if where.replace(" ", "") in (f"stage{s}", "stage*")]
    if chosen and memory:
        return [memory_term(plan, s) for s in chosen]
    if chosen:
        return [_stage(plan, s) for s in chosen]
    found = _layers(plan, where)
    if memory:
        touched = [s for s in stages if any(x in runs(plan, plan.stages[s]) for x in found)]
        return [memory_term(plan, s) for s in touched]
    return [_call(plan, layers) for layers in found]


def _stage(plan: Plan, number: int) -> Term:
    times = stage_times(plan, plan.stages[number], plan.cluster)
    return total(f"stage {number}", [times.forward, times.backward, times.sync])


def _call(plan: Plan, layers: Layers) -> Term:
    """One call of a run, for one micro-batch."""
    pieces = [("forward", layers.forward), ("backward", layers.backward)]
    name = f"{label(plan, layers)}: {plan.strategy_of(layers)}, {layers.memory}, each"
    return total(name, [piece_term(way, piece, 1, plan.cluster) for way, piece in pieces])


def _layers(plan: Plan, where: str) -> list[Layers]:
    from ..planner.pins import call_names, matches

    functions = [
        plan.shardings[x.sharding].function for x in plan.layers for _ in range(x.first, x.last)
    ]
    paths = plan.calls or ("",) * len(functions)
    named = list(call_names(list(zip(paths, functions, strict=True))))
    hit = {i for i, names in enumerate(named) if matches(where, names)}
    hit = hit or {i for i, names in enumerate(named) if any(where in n for n in names[:2])}
    found = [x for x in plan.layers if hit & set(range(x.first, x.last))]
    if not found:
        known = ", ".join(sorted({*functions, *(f"stage{s}" for s in range(len(plan.stages)))}))
        raise UsageError(f"no call, function or stage matches {where!r}; known: {known}")
    return found


def tree(term: Term, deepest: int, notes: Notes, depth: int = 0) -> Iterator[str]:
    """A term and those below it, one a line."""
    amount = seconds(term.value) if term.unit == "s" else size(term.value)
    name = f"{'  ' * depth}{one_line(term.name)}"
    leaf = not term.parts
    if leaf:
        values = ", ".join(f"{k}={v:.6g}" for k, v in term.symbols.items())
        yield f"{name:<44}{amount:>10}   {term.formula}   {values}   {notes.of(term.source)}"
        return
    formula = sum_formula(term) if depth >= deepest else term.formula
    yield f"{name:<44}{amount:>10}   {formula}"
    if depth < deepest:
        for part in sorted(term.parts, key=lambda t: -t.value):
            yield from tree(part, deepest, notes, depth + 1)


def sum_formula(term: Term) -> str:
    """The formulas summed up over what is not shown."""
    return "sum of " + ", ".join(dict.fromkeys(leaf.formula for leaf in term.leaves()))


def names_in(term: Term) -> set[str]:
    """Symbols of all formulas at a term and below."""
    return {name for leaf in term.leaves() for name in re.findall(r"[A-Za-z_]\w*", leaf.formula)}


def symbols(plan: Plan) -> tuple[Symbol, ...]:
    """Everything that a formula may use."""
    return (*legend(plan.cluster), *LEGEND)


def symbol_line(symbol: Symbol, notes: Notes) -> str:
    value = "" if symbol.value is None else f" = {symbol.value:.6g}"
    return f"  {symbol.name + value:<30} {symbol.about} {notes.of(symbol.source)}".rstrip()


def run(options: argparse.Namespace) -> int:
    from .face import load_plan

    plan = load_plan(options.plan)
    if options.why_not:
        rival = other_plan(plan, options.why_not, options)
        print(json.dumps(versus_json(plan, rival), indent=1) if options.json else versus(plan, rival))
        return 0
    if options.json:
        from .work import plan_json

        shown = terms(plan, options.where, options.memory)
        body = {
            **plan_json(plan, {}), "terms": [msgspec.to_builtins(t) for t in shown],
            "symbols": [msgspec.to_builtins(s) for s in symbols(plan)],
        }  # fmt: skip
        print(json.dumps(body, indent=1))
        return 0
    if options.where is None and not options.memory:
        print(print_plan(plan), end="\n\n")
    print(explain(plan, options.where, memory=options.memory))
    return 0


def other_plan(plan: Plan, word: str, options: argparse.Namespace) -> Plan:
    """The same model, cluster and batch under another strategy, whether it fits or not."""
    from .face import plan as make
    from .work import load_model

    source = source_of(plan, options)
    model = load_model(source, plan.global_batch)
    if model.fingerprint() != plan.model_digest:
        raise MismatchError(f"{source.source} is not the model of the plan ({plan.model})")
    for budget in (plan.budget_bytes, UNLIMITED):
        try:
            made = make(
                model, cluster=plan.cluster, memory=budget, precision=plan.precision,
                optimizer=plan.optimizer.name, pin=word,
            )  # fmt: skip
            return msgspec.structs.replace(made, budget_bytes=plan.budget_bytes)
        except InfeasibleError:
            if budget == UNLIMITED:
                raise
    raise AssertionError("unreachable")


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
        raise UsageError(f"--why-not prices the model again: name it with --model{hint}")
    return argparse.Namespace(**given)


def versus(plan: Plan, rival: Plan) -> str:
    """What a rival costs more, term by term."""
    ours, theirs = step_term(plan), step_term(rival)
    slower = theirs.value / ours.value - 1
    peak = max(s.peak_bytes for s in rival.stages)
    fits = peak <= plan.budget_bytes
    verdict = f"{abs(slower):.1%} {'slower' if slower > 0 else 'faster'}"
    if not fits:
        short = f"needs {gib(peak)}, has {gib(plan.budget_bytes)}"
        verdict += f", and does not fit: {short}"
    lines = [
        f"{rival.word} ({rival.micro_batches} micro-batches, {memory_of(rival)}) instead of "
        f"{plan.word} ({plan.micro_batches} micro-batches, {memory_of(plan)}): {verdict}",
        "", f"{'seconds':<38}{'plan':>12}{'instead':>12}{'more':>12}",
    ]  # fmt: skip
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
    peak = max(s.peak_bytes for s in rival.stages)
    return {
        "word": rival.word, "instead_of": plan.word, "micro_batches": rival.micro_batches,
        "step_time_s": rival.prediction.step_seconds, "plan_step_time_s": plan.prediction.step_seconds,
        "peak": peak, "budget": plan.budget_bytes, "fits": peak <= plan.budget_bytes,
        "seconds": {n: [a, b] for n, a, b in rows(by_kind(step_term(plan)), by_kind(step_term(rival)))},
        "bytes": {n: [a, b] for n, a, b in rows(fullest(plan), fullest(rival))},
    }  # fmt: skip


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
