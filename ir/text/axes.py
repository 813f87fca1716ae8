"""Text of the axes of functions, for people: factors of values, options to split every operator."""

from __future__ import annotations

from collections.abc import Iterator

from ..analysis.axes import Axes
from ..analysis.dataflow import Dataflow
from ..analysis.formula import bytes_formula, flops_formula
from ..model.loops import Loops, Site, site_of
from .lexer import name_text
from .sharding import loops_text


def print_dataflow(dataflow: Dataflow) -> str:
    """The axes of all functions.

    `%7 [(0:8 1:12) 2:32]`: factors of every dimension by id and size; equal ids are one axis. Below
    are the loops of every operator, floating-point operations and bytes moved as formulas of their
    sizes, and the options to split it.
    """
    return "\n\n".join(
        "\n".join([f"axes {name_text(name)}", *_axes(axes, dataflow, name)])
        for name, axes in dataflow.axes.items()
    )


def _axes(axes: Axes, dataflow: Dataflow, name: str) -> Iterator[str]:
    for label, factors in (("batch", dataflow.batch_factors), ("tokens", dataflow.token_factors)):
        if factors[name]:
            yield f"  {label} {' '.join(map(str, sorted(factors[name])))}"
    for value, dims in enumerate(axes.factor_ids):
        yield f"  %{value} [{' '.join(_dim(axes, dim) for dim in dims)}]"
    function = dataflow.graph.functions[name]
    for number, (op, analysis) in enumerate(zip(function.ops, axes.ops, strict=True)):
        site = site_of(op, function.types)
        options = ", ".join(map(str, analysis.by_name))
        yield f"  op {number}  {_work(analysis.declared, site)} : {options}"


def _work(loops: Loops | None, site: Site) -> str:
    """The loops of an operator, and how its operations and bytes grow with them."""
    if loops is None:
        return "opaque"
    if not loops.flops:
        return loops_text(loops)
    return f"{loops_text(loops)}, {flops_formula(loops)} flops, {bytes_formula(loops, site)} bytes"


def _dim(axes: Axes, factors: tuple[int, ...]) -> str:
    texts = [f"{factor}:{axes.sizes[factor]}" for factor in factors]
    return f"({' '.join(texts)})" if len(texts) > 1 else "".join(texts) or "1"
