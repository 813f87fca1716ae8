"""`plait explain`: the terms behind a plan as text or JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import isclose
from typing import Any

import msgspec

from ...cost_model.communication.compressed_all_reduce import compressed_reductions
from ...cost_model.execution_model import engine_execution
from ...cost_model.explain.memory_terms import LEGEND, memory_term
from ...cost_model.explain.step_terms import half_term, label, stage_terms, step_term
from ...cost_model.explain.term import Symbol, Term, legend, total
from ...ir.analysis.dataflow import analyse_dataflow
from ...ir.errors import UsageError
from ...ir.model.model import Model
from ...ir.plan.plan import Layers, Plan
from ...ir.text.sharding import print_sharding
from ...ir.text.summary import one_line
from ...ir.text.units import seconds, size
from ...ir.unknown_name import nearest

DEEPEST = 3  # levels of a whole plan's tree on a screen; WHERE shows all of its part


def explain(plan: Plan, where: str | None = None, *, memory: bool = False) -> str:
    """The terms of a plan as text: name, value, formula, and where its numbers come from.

    `where` names calls (`model.layers.3`, `block.3`), functions (`block*`) or stages (`stage0`).
    `memory` shows bytes per stage (default: seconds). Raises UsageError when nothing matches.
    """
    trees = terms(plan, where, memory)
    deepest = DEEPEST if where is None else 99
    names = {name for term in trees for name in names_in(term)}
    notes = SourceNotes()
    lines = [line for term in trees for line in tree(term, deepest, notes)]
    lines += differences(plan)
    if memory:
        lines += ["", "what backward reads", *saved_activations(plan)]
    lines += ["", "symbols", *(symbol_line(s, notes) for s in symbols(plan) if s.name in names)]
    lines += ["", "sources", *(f"  [{n}] {text}" for text, n in notes.numbers.items())]
    return "\n".join(lines)


def differences(plan: Plan) -> list[str]:
    """Notes on figures of a plan that its terms do not add up to: an engine hides some beside others,
    or the plan was edited by hand."""
    pairs: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("step", plan.prediction.step_seconds, step_term(plan).value, seconds)
    ]
    pairs += [
        (f"stage {s}", stage.peak_bytes, memory_term(plan, s).value, size)
        for s, stage in enumerate(plan.stages)
    ]
    execution = engine_execution(plan.engine)
    overlaps = execution.overlaps if execution else ()
    why = f" ({plan.engine} overlaps {', '.join(overlaps)})" if overlaps else ""
    return [
        f"note: {name}: the plan says {text(stated)}, its terms add up to {text(summed)}{why}"
        for name, stated, summed, text in pairs
        if not isclose(stated, summed, rel_tol=1e-6)
    ]


def saved_activations(plan: Plan) -> Iterator[str]:
    """The activations that every run of layers saves for backward, and where they wait."""
    for layers in (x for x in plan.layers if not x.batch_only):
        host = f"{size(layers.forward.host_bytes)} of a call in host memory: "
        saves_all = layers.variant == "keep"
        saved = "everything it reads" if saves_all else ", ".join(layers.producers) or "the inputs"
        chunks = f"; runs in {layers.memory.chunks} chunks" if layers.memory.chunked else ""
        recomputed = "" if saves_all else "; all else is computed again"
        text = f"{host if layers.memory.on_host else ''}{one_line(saved)}{chunks}{recomputed}"
        yield f"  {label(plan, layers):<32} {layers.memory:<14} {text}"


class SourceNotes:
    """Sources by number, in the order of their first use."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def of(self, source: str) -> str:
        return f"[{self.numbers.setdefault(source, len(self.numbers) + 1)}]" if source else ""


def terms(plan: Plan, where: str | None, memory: bool) -> list[Term]:
    """The terms of calls, functions or stages, or of the whole step; of bytes where `memory`."""
    stages = range(len(plan.stages))
    if where is None:
        return [memory_term(plan, s) for s in stages] if memory else [step_term(plan)]
    chosen = [s for s in stages if where.replace(" ", "") in (f"stage{s}", "stage*")]
    if chosen and memory:
        return [memory_term(plan, s) for s in chosen]
    if chosen:
        return [_stage(plan, s) for s in chosen]
    matching = _layers(plan, where)
    if memory:
        affected = [
            s
            for s in stages
            if any(plan.stage_of_layers(x) == s for x in matching if not x.batch_only)
        ]
        return [memory_term(plan, s) for s in affected]
    return [_call(plan, layers) for layers in matching]


def _stage(plan: Plan, number: int) -> Term:
    times = stage_terms(plan, number)
    return total(f"stage {number}", [times.forward, times.backward, times.sync])


def _call(plan: Plan, layers: Layers) -> Term:
    """One call of a run, for one micro-batch."""
    title = f"{label(plan, layers)}: {plan.strategy_of(layers)}, {layers.memory}, each"
    reductions = compressed_reductions(plan, plan.strategy_of(layers))
    halves = (("forward", layers.forward), ("backward", layers.backward))
    cluster = plan.cluster_of(plan.stage_of_layers(layers))
    terms = [half_term(name, half, 1, cluster, reductions, plan.engine) for name, half in halves]
    return total(title, terms)


def explain_sharding(plan: Plan, model: Model | None, where: str | None = None) -> str:
    """The shardings of a plan, or of what `where` names, as text that `parse_sharding` reads.

    With the plan's model, operators have names, loops and placements. Raises UsageError.
    """
    used = plan.layers if where is None else _matching(plan, where)
    axes = analyse_dataflow(model).axes if model is not None else {}
    texts: list[str] = []
    for number in dict.fromkeys(layers.sharding for layers in used):
        sharding = plan.shardings[number]
        function = None if model is None else model.function(sharding.function)
        texts.append(print_sharding(sharding, function, axes.get(sharding.function)))
    return "\n\n".join(texts)


def _matching(plan: Plan, where: str) -> list[Layers]:
    """The runs of layers in the stages, calls or functions that `where` names."""
    stages = [stage for s, stage in enumerate(plan.stages) if where in (f"stage{s}", "stage*")]
    if stages:
        return [x for x in plan.layers if plan.stages[plan.stage_of_layers(x)] in stages]
    return _layers(plan, where)


def _layers(plan: Plan, where: str) -> list[Layers]:
    from ...planner.question.pins import call_names, matches

    functions = function_names(plan)
    paths = plan.calls or ("",) * len(functions)
    named = list(call_names(list(zip(paths, functions, strict=True))))
    hits = {i for i, names in enumerate(named) if matches(where, names)}
    hits = hits or {i for i, names in enumerate(named) if any(where in n for n in names[:2])}
    matching = [x for x in plan.layers if hits & set(range(x.first, x.last))]
    if not matching:
        known = [*dict.fromkeys(functions), *(f"stage{s}" for s in range(len(plan.stages)))]
        near = nearest(where, [*known, *paths])
        hint = f" did you mean {near}?" if near else ""
        raise UsageError(
            f"no call, function or stage matches {where!r};{hint} known: {', '.join(known)}"
        )
    return matching


def function_names(plan: Plan) -> list[str]:
    """The function of every call."""
    by_call = {
        call: plan.shardings[x.sharding].function
        for x in plan.layers
        for call in range(x.first, x.last)
    }
    return [by_call[call] for call in sorted(by_call)]


def tree(term: Term, deepest: int, notes: SourceNotes, depth: int = 0) -> Iterator[str]:
    """A term and those below it, one per line."""
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
    """The formulas of the terms below, which are not printed."""
    return "sum of " + ", ".join(dict.fromkeys(leaf.formula for leaf in term.leaves()))


def names_in(term: Term) -> set[str]:
    """Symbols of all formulas at a term and below."""
    return {name for leaf in term.leaves() for name in re.findall(r"[A-Za-z_]\w*", leaf.formula)}


def symbols(plan: Plan) -> tuple[Symbol, ...]:
    """Everything that a formula may use."""
    return (*legend(plan.cluster), *LEGEND)


def symbol_line(symbol: Symbol, notes: SourceNotes) -> str:
    value = "" if symbol.value is None else f" = {symbol.value:.6g}"
    return f"  {symbol.name + value:<30} {symbol.about} {notes.of(symbol.source)}".rstrip()


def explain_json(plan: Plan, where: str | None, memory: bool) -> dict[str, Any]:
    """The terms of `explain`, and every symbol, as data."""
    return {
        "terms": [msgspec.to_builtins(t) for t in terms(plan, where, memory)],
        "symbols": [msgspec.to_builtins(s) for s in symbols(plan)],
    }
