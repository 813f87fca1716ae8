"""Write through a view: the full tensor after the elements of a view were replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ...errors import TraceError
from ...model.model import Argument, Op, Ref
from ...model.tensor import TensorType
from ..graph import FlatGraph

# view operator -> (operator that writes the view's elements back, its arguments)
WriteBack = Callable[[Op, tuple[int, ...]], tuple[str, tuple[Argument, ...]]]


def _scatter(name: str) -> WriteBack:
    return lambda op, shape: (name, op.args[1:])


def _reshape(op: Op, shape: tuple[int, ...]) -> tuple[str, tuple[Argument, ...]]:
    return "aten.view.default", (shape,)


def _same(name: str) -> WriteBack:
    return lambda op, shape: (name, op.args[1:])


def _permute(op: Op, shape: tuple[int, ...]) -> tuple[str, tuple[Argument, ...]]:
    order = op.args[1]
    assert isinstance(order, tuple)
    dims = [int(d) % len(shape) for d in order]  # type: ignore[arg-type]
    return "aten.permute.default", (tuple(dims.index(d) for d in range(len(shape))),)


def _reversed(op: Op, shape: tuple[int, ...]) -> tuple[str, tuple[Argument, ...]]:
    return "aten.permute.default", (tuple(reversed(range(len(shape)))),)


SINGLE_VIEWS: dict[str, WriteBack] = {
    "aten.slice.Tensor": _scatter("aten.slice_scatter.default"),
    "aten.diagonal.default": _scatter("aten.diagonal_scatter.default"),
    "aten.select.int": _scatter("aten.select_scatter.default"),
    "aten.view.default": _reshape,
    "aten.reshape.default": _reshape,
    "aten.unsqueeze.default": _reshape,
    "aten.squeeze.default": _reshape,
    "aten.squeeze.dim": _reshape,
    "aten.flatten.using_ints": _reshape,
    "aten.contiguous.default": _reshape,
    "aten._to_copy.default": _reshape,
    "aten.detach.default": _reshape,
    "aten.alias.default": _reshape,
    "aten.t.default": _same("aten.t.default"),
    "aten.transpose.int": _same("aten.transpose.int"),
    "aten.permute.default": _permute,
    "aten.numpy_T.default": _reversed,
    "aten.mT.default": _same("aten.mT.default"),
}


class ViewWrite(NamedTuple):
    """An operator that gives the whole tensor after a part of it was replaced."""

    target: str
    args: tuple[Argument, ...]
    type: TensorType


def write_back(graph: FlatGraph, op: Op, full: int, view: int) -> ViewWrite:
    """The operator that replaces the elements of tensor `full` that `op` views by `view`.

    Raises TraceError for view operators that cannot be inverted.
    """
    if op.target not in SINGLE_VIEWS:
        raise TraceError(
            f"writing in place through {op.target} is not supported: the tensor it views is still "
            "in use; write out of place (torch.where, torch.cat) instead"
        )
    type_ = graph.types[full]
    name, rest = SINGLE_VIEWS[op.target](op, type_.shape)
    scattered = name.endswith("_scatter.default")
    args = (Ref(full), Ref(view), *rest) if scattered else (Ref(view), *rest)
    return ViewWrite(name, args, type_)
