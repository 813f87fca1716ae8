"""Dataflow between a model's calls: common factors at boundaries, batch and token dimensions.

Each function is analysed alone, but a dim that one function merges and another factors must be
factored in both, or no layout could be passed on. The batch is dimension 0 of every batched input, a
sample's tokens dimension 1 of integer ones; both are followed through the functions' axes to every
value that they reach.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..model.layout import Factors, Shard
from ..model.model import Function, Model, ModelInput
from ..passes import Pass
from .axes import Axes, analyse
from .factors import common_refinement
from .model_graph import ModelGraph

FlowEdge = tuple[tuple[str, int], tuple[str, int]]  # producer and consumer, each (function, value)


class Dataflow(msgspec.Struct, frozen=True):
    """The graph of calls, axes by function, and the factor ids that walk the batch and the tokens of
    a sample."""

    graph: ModelGraph
    axes: dict[str, Axes]
    batch_factors: dict[str, frozenset[int]]
    token_factors: dict[str, frozenset[int]]

    def batch_shard(self, function: Function, value: int) -> Shard | None:
        """Where a value carries the batch: (dim, factor index) of the outermost factor, or None."""
        return self._outermost(function, value, self.batch_factors[function.name])

    def token_shard(self, function: Function, value: int) -> Shard | None:
        """Where a value carries the tokens of a sample, or None."""
        return self._outermost(function, value, self.token_factors[function.name])

    def _outermost(self, function: Function, value: int, wanted: frozenset[int]) -> Shard | None:
        for dim, factors in enumerate(self.axes[function.name].factor_ids[value]):
            for index, factor in enumerate(factors):
                if factor in wanted:
                    return (dim, index)
        return None


class AnalyseAxes(Pass[Model, Dataflow], frozen=True):
    """Infer the axes of every function, and which of them walk the batch and the tokens."""

    name = "axes"

    def apply(self, value: Model) -> Dataflow:
        return analyse_dataflow(value)


def analyse_dataflow(model: Model) -> Dataflow:
    """Analyse every function of a model together with its callers."""
    graph = ModelGraph(model)
    functions, edges = graph.functions, _edges(graph)
    known: dict[str, dict[int, Factors]] = {name: {} for name in functions}
    axes = {name: analyse(f) for name, f in functions.items()}
    for _ in range(len(functions) + 2):
        changed = _agree(edges, axes, known)
        if not changed:
            break
        for name in changed:
            axes[name] = analyse(functions[name], known[name])
    batch = _followed(graph, axes, edges, _batch_start)
    return Dataflow(graph, axes, batch, _followed(graph, axes, edges, _token_start))


def _edges(graph: ModelGraph) -> tuple[FlowEdge, ...]:
    """Pairs of function values that calls connect; parameters and buffers connect their users."""
    producer: dict[str, tuple[str, int]] = {}
    edges: dict[FlowEdge, None] = {}
    for number, call in enumerate(graph.model.calls):
        for name, item in (*graph.parameters(number), *graph.arguments(number)):
            consumer = (call.function, item.value)
            if producer.setdefault(name, consumer) != consumer:
                edges[producer[name], consumer] = None
        for name, output in graph.results(number):
            producer[name] = (call.function, output.value)
    return tuple(edges)


def _agree(
    edges: tuple[FlowEdge, ...], axes: dict[str, Axes], known: dict[str, dict[int, Factors]]
) -> set[str]:
    """Record the common refinement at both ends of every edge; names of functions that must change."""
    changed: set[str] = set()
    for (one, x), (other, y) in edges:
        left, right = axes[one].factors[x], axes[other].factors[y]
        pairs = zip(left, right, strict=True)
        common = tuple(common_refinement(a, b) or a for a, b in pairs)
        for name, value, have in ((one, x, left), (other, y, right)):
            if common != have and known[name].get(value) != common:
                known[name][value] = common
                changed.add(name)
    return changed


Start = Callable[[Axes, int, ModelInput, int], list[int]]


def _followed(
    graph: ModelGraph, axes: dict[str, Axes], edges: tuple[FlowEdge, ...], start: Start
) -> dict[str, frozenset[int]]:
    """Follow what starts in the model's batched inputs along edges in both directions."""
    model = graph.model
    marked: dict[str, set[int]] = {name: set() for name in graph.functions}
    batched = {i.name: i for i in model.inputs if i.batched}
    for number, call in enumerate(model.calls):
        for name, item in graph.arguments(number):
            if name in batched:
                factors = start(axes[call.function], item.value, batched[name], model.batch)
                marked[call.function].update(factors)
    moved = True
    while moved:
        moved = False
        for (one, x), (other, y) in edges:
            for (a, v), (b, w) in (((one, x), (other, y)), ((other, y), (one, x))):
                moved |= _carry(axes[a], v, marked[a], axes[b], w, marked[b])
    return {name: frozenset(factors) for name, factors in marked.items()}


def _batch_start(axes: Axes, value: int, item: ModelInput, batch: int) -> list[int]:
    """Factors of dimension 0 whose product is the batch."""
    batch_factors, size = list[int](), 1
    for factor, extent in zip(axes.factor_ids[value][0], axes.factors[value][0], strict=True):
        if size < batch:
            batch_factors.append(factor)
            size *= extent
    return batch_factors


def _token_start(axes: Axes, value: int, item: ModelInput, batch: int) -> list[int]:
    """Factors of the second dimension of integer inputs: token ids, labels, masks."""
    tokens = not item.type.is_float and len(item.type.shape) == 2
    return list(axes.factor_ids[value][1]) if tokens else []


def _carry(here: Axes, v: int, marked: set[int], there: Axes, w: int, into: set[int]) -> bool:
    before = len(into)
    for left, right in zip(here.factor_ids[v], there.factor_ids[w], strict=True):
        if len(left) == len(right):
            into.update(b for a, b in zip(left, right, strict=True) if a in marked)
    return len(into) > before
