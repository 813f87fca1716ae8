"""The report of a model alone: its calls, with equal layers folded, and their flops."""

from __future__ import annotations

from ...ir.analysis.model_graph import ModelGraph
from ...ir.model.model import Function, Model
from ...ir.text.summary import calls_of, one_line, parameters
from ...ir.text.units import count
from .layout import arrange
from .module_graph import Inside
from .price import as_traced, flops_text
from .report import Box, BoxGraph, Edge, Report, ReportTable

Runs = list[tuple[int, int]]


def report_of_model(model: Model) -> Report:
    """Runs of calls of one function are one box; boxes open to show the traced operators."""
    runs = equal_runs(model)
    graphs: dict[str, BoxGraph] = {}
    flops: dict[str, float] = {}
    for function in model.functions:
        inside = Inside(function, as_traced(function), function.name)
        graphs.update(inside.graphs)
        flops[function.name] = sum(p.flops for p in (*inside.forward, *inside.backward))
    boxes = [_box(model, first, last, flops) for first, last in runs]
    total = sum(flops[call.function] for call in model.calls)
    return Report(
        title=one_line(model.name),
        subtitle=f"traced model, batch of {model.batch}",
        tiles=(
            ("parameters", count(parameters(model)), "elements"),
            ("calls", str(len(model.calls)), f"of {len(model.functions)} functions"),
            ("operators", str(sum(len(f.ops) for f in model.functions)), "in distinct functions"),
            ("work per step", flops_text(total), "forward and backward"),
        ),
        graphs={"": arrange(boxes, data_edges(model, runs)), **graphs},
        modes=("work",),
        tables=(_functions(model, flops),),
    )


def equal_runs(model: Model) -> Runs:
    """(first, after last) of neighbouring calls of one function."""
    runs: Runs = []
    for number, call in enumerate(model.calls):
        if runs and model.calls[runs[-1][0]].function == call.function:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def data_edges(model: Model, runs: Runs) -> list[Edge]:
    """Edges from runs of calls to the runs that read their results."""
    owner = {call: i for i, (first, last) in enumerate(runs) for call in range(first, last)}
    graph = ModelGraph(model)
    pairs = {
        (owner[maker.call], owner[i])
        for i in owner
        for name in model.calls[i].arguments
        if (maker := graph.maker(name)) is not None
        if maker.call in owner and owner[maker.call] != owner[i]
    }
    return [Edge(source, target) for source, target in sorted(pairs)]


def _box(model: Model, first: int, last: int, flops: dict[str, float]) -> Box:
    call, function = model.calls[first], model.function(model.calls[first].function)
    paths = [one_line(model.calls[i].path) for i in (first, last - 1)]
    return Box(
        label=function.name,
        kind="call",
        about=f"{len(function.forward_ops)} operators, backward {len(function.backward_ops)}",
        times=last - first,
        flops=flops[call.function],
        facts=(
            ("module", paths[0] if last - first == 1 else f"{paths[0]} … {paths[1]}"),
            ("parameters", f"{count(parameter_elements(function))} each"),
            ("forward", f"{len(function.forward_ops)} operators"),
            ("backward", f"{len(function.backward_ops)} operators"),
        ),
        inside=function.name,
    )


def parameter_elements(function: Function) -> int:
    """Number of parameter elements of one call."""
    return sum(function.types[i.value].elements for i in function.state_inputs())


def _functions(model: Model, flops: dict[str, float]) -> ReportTable:
    rows = tuple(
        (
            f.name,
            str(calls_of(model, f.name)),
            count(parameter_elements(f)),
            str(len(f.forward_ops)),
            str(len(f.backward_ops)),
            flops_text(flops[f.name]),
        )
        for f in model.functions
    )
    columns = (
        "function",
        "calls",
        "parameters each",
        "forward operators",
        "backward operators",
        "work per call",
    )
    hint = "each of them is traced, priced and compiled once"
    return ReportTable("Functions", hint, columns, rows, (1, 2, 3, 4, 5))
