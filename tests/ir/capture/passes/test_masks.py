"""Masks made of positions are recognised without ever being made."""

import pytest
import torch
from torch import nn

from plait.ir.capture import trace
from plait.ir.capture.graph import FlatGraph
from plait.ir.capture.passes.masks import PositionAnalysis
from plait.ir.errors import TraceError
from plait.ir.model.model import ModelInput, Ref
from plait.ir.model.tensor import TensorType


def causal_mask(
    size: int, shift: int = 0, window: int = 0, batch: int = 2
) -> tuple[PositionAnalysis, int]:
    """le(column, row + shift), and column > row - window, as models write it."""
    graph = FlatGraph()

    def emit(target, args, shape, dtype="int64"):
        return graph.emit(f"aten.{target}", args, (TensorType(shape, dtype),))[0]

    positions = emit("arange.default", (size,), (size,))
    shifted = emit("add.Tensor", (Ref(positions), shift), (size,))
    rows = emit("unsqueeze.default", (Ref(shifted), 1), (size, 1))
    columns = emit("view.default", (Ref(positions), (1, size)), (1, size))
    mask = emit("le.Tensor", (Ref(columns), Ref(rows)), (size, size), "bool")
    if window:
        start = emit("sub.Tensor", (Ref(rows), window), (size, 1))
        near = emit("gt.Tensor", (Ref(columns), Ref(start)), (size, size), "bool")
        mask = emit("bitwise_and.Tensor", (Ref(mask), Ref(near)), (size, size), "bool")
    shape = (batch, 1, size, size)
    mask = emit("expand.default", (Ref(mask), shape), shape, "bool")
    return PositionAnalysis(graph, {r: op for op in graph.ops for r in op.results}), mask


@pytest.mark.parametrize(
    ("size", "shift", "window", "kind"),
    [
        (16, 0, 0, "causal"),
        (16, 1, 0, "other"),
        (16, -1, 0, "other"),
        (16, 15, 0, "all"),
        (16, 0, 4, "other"),
        (16, 0, 16, "causal"),
        (5000, 0, 0, "causal"),
        (5000, 4999, 0, "all"),
        (1 << 20, 0, 0, "causal"),
        (1 << 20, 0, 4096, "other"),
        (1 << 20, 1, 0, "other"),
    ],
)
def test_kinds(size: int, shift: int, window: int, kind: str) -> None:
    masks, mask = causal_mask(size, shift, window)
    assert masks.kind(mask) == kind


def test_one_wrong_point_is_found() -> None:
    graph = FlatGraph()
    wrong = torch.ones(64, 64).tril()
    wrong[40, 7] = 0
    source = graph.value(TensorType((64, 64), "bool"))
    from plait.ir.model.model import Parameter

    values = tuple(wrong.bool().reshape(-1).tolist())
    graph.parameters[source] = Parameter("c", graph.types[source], "constant", False, (), values)
    (mask,) = graph.emit("aten.logical_not.default", (Ref(source),), (graph.types[source],))
    (mask,) = graph.emit("aten.logical_not.default", (Ref(mask),), (graph.types[source],))
    assert (
        PositionAnalysis(graph, {r: op for op in graph.ops for r in op.results}).kind(mask)
        == "other"
    )


def test_what_depends_on_the_batch_is_never_constant() -> None:
    graph = FlatGraph()
    source = graph.value(TensorType((4, 4), "bool"))
    graph.inputs[source] = ModelInput("mask", graph.types[source], (), True)
    (mask,) = graph.emit("aten.logical_not.default", (Ref(source),), (graph.types[source],))
    assert (
        PositionAnalysis(graph, {r: op for op in graph.ops for r in op.results}).kind(mask)
        == "other"
    )


def test_an_additive_mask() -> None:
    masks, mask = causal_mask(16)
    type_ = TensorType((2, 1, 16, 16), "float32")
    scalar = TensorType((), "float32")
    graph = masks.graph
    (zero,) = graph.emit("aten.full.default", ((), 0.0), (scalar,))
    (low,) = graph.emit("aten.full.default", ((), "float:-inf"), (scalar,))
    (added,) = graph.emit("aten.where.self", (Ref(mask), Ref(zero), Ref(low)), (type_,))
    masks = PositionAnalysis(graph, {r: op for op in graph.ops for r in op.results})
    assert masks.kind(added) == "causal"


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(16, 4), nn.Embedding(8, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1]) + 2
        return (self.tokens(tokens) + self.places(places)).square().mean()


def test_positions_beyond_the_table_are_refused() -> None:
    module = Positions()
    trace(module, (torch.zeros(2, 6, dtype=torch.int64),))
    with pytest.raises(TraceError, match=r"row 8 of places\.weight, which has 8 rows"):
        trace(module, (torch.zeros(2, 7, dtype=torch.int64),))
