"""`plait explain`: the terms behind a plan as text or JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import isclose
from typing import Any

import msgspec

from ..cost_model.communication.compressed_all_reduce import reductions_of
from ..cost_model.explain.memory_terms import LEGEND, memory_term
from ..cost_model.explain.step_terms import label, piece_term, runs, stage_times, step_term
from ..cost_model.explain.term import Symbol, Term, legend, total
from ..ir.errors import UsageError
from ..ir.plan.plan import DIVIDED, HOSTED, Layers, Plan
from ..ir.text.printer import one_line, seconds, size

DEEPEST = 3  # levels of a whole plan's tree on a screen; WHERE shows all of its part


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
    if memory:
        lines += ["", "what backward reads", *remembered(plan)]
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


def remembered(plan: Plan) -> Iterator[str]:
    """What every run of layers keeps, and where."""
    for layers in (x for x in plan.layers if not x.once):
        host = f"{size(layers.forward.host_bytes)} of a call in host memory: "
        whole = layers.variant == "keep"
        kept = "everything it reads" if whole else ", ".join(layers.makers) or "the inputs"
        pieces = f"; runs in {DIVIDED[layers.memory]} pieces" if layers.memory in DIVIDED else ""
        again = "" if whole else "; all else is computed again"
        text = f"{host if layers.memory in HOSTED else ''}{one_line(kept)}{pieces}{again}"
        yield f"  {label(plan, layers):<32} {layers.memory:<14} {text}"


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
    sums = reductions_of(plan, plan.strategy_of(layers))
    return total(name, [piece_term(way, piece, 1, plan.cluster, sums) for way, piece in pieces])


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


def explain_json(plan: Plan, where: str | None, memory: bool) -> dict[str, Any]:
    """The terms that answer a question, and every symbol, as JSON data."""
    return {
        "terms": [msgspec.to_builtins(t) for t in terms(plan, where, memory)],
        "symbols": [msgspec.to_builtins(s) for s in symbols(plan)],
    }
