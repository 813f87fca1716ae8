"""Text of the axes of functions, for people: factors of values, ways to split every operator."""

from __future__ import annotations

from collections.abc import Iterator

from ..analysis.axes import Axes
from ..analysis.dataflow import Dataflow
from .lexer import name_text
from .sharding import loops_text


def print_dataflow(dataflow: Dataflow) -> str:
    """The axes of all functions.

    `%7 [(0:8 1:12) 2:32]`: factors of every dimension by id and size; equal ids are one axis. Below
    are the loops of every operator and the ways to split it.
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
    for number, op in enumerate(axes.ops):
        loops = "opaque" if op.declared is None else loops_text(op.declared)
        yield f"  op {number}  {loops} : {', '.join(map(str, op.by_name))}"


def _dim(axes: Axes, factors: tuple[int, ...]) -> str:
    texts = [f"{factor}:{axes.sizes[factor]}" for factor in factors]
    return f"({' '.join(texts)})" if len(texts) > 1 else "".join(texts) or "1"
