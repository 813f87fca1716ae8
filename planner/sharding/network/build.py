"""From a sharding problem to its network, and from strategies back to shardings."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from math import isfinite

import msgspec
import numpy as np

from ....ir.analysis.axes import OpStrategy
from ....ir.errors import PlaitError
from ....ir.model.layout import PARTIAL, REPLICATE, AxisPlacement, Layout
from ....ir.model.model import Input
from ....ir.plan.sharding import AxisSharding, Boundary, OpSplit
from ..problem import BulkCosts, ShardingProblem
from .moves import Floats, ReshardTables
from .network import Endpoint, Network, ReshardEdge
from .node_strategies import (
    Ints,
    NodeStrategies,
    Usable,
    boundary_layouts,
    gradient_layout,
    legal_strategies,
    usable_options,
)


class NodeValue(msgspec.Struct, frozen=True):
    """A value at a node: `placements[axis]` and, per strategy, the index into them."""

    node: int
    placements: tuple[tuple[AxisPlacement, ...], ...]
    columns: tuple[Ints, ...]


class BuiltNetwork(msgspec.Struct, frozen=True):
    """A network and the meaning of its nodes: strategies of operators, layouts at the boundary."""

    network: Network
    ops: dict[int, tuple[int, NodeStrategies]]  # operator -> node, strategies
    boundary: dict[
        tuple[str, int], tuple[int, list[Layout]]
    ]  # ("input", position) -> node, layouts


def build(problem: ShardingProblem) -> BuiltNetwork:
    """Raises PlaitError where an operator or a value at the boundary has no legal strategy."""
    return _Builder(problem).run()


class _Builder:
    def __init__(self, problem: ShardingProblem) -> None:
        self.problem = problem
        self.seconds: list[Floats] = []
        self.bytes: list[Floats] = []
        self.axis_strategies: list[Ints] = []
        self.produced: dict[int, NodeValue] = {}
        self.consumed: dict[tuple[int, bool], list[NodeValue]] = {}
        self.ops: dict[int, tuple[int, NodeStrategies]] = {}
        self.boundary: dict[tuple[str, int], tuple[int, list[Layout]]] = {}
        self.strategies_of: dict[Hashable, NodeStrategies] = {}
        self.memory_values = (
            _memory_values(problem) if isfinite(problem.memory_limit_bytes) else frozenset[int]()
        )

    def run(self) -> BuiltNetwork:
        function = self.problem.function
        for i, item in enumerate(function.inputs):
            self.add_produced("input", i, item.value)
        for i in range(function.forward):
            self.operator(i)
        for i, output in enumerate(function.outputs):
            self.add_consumed("output", i, output.value, False)
        for i, output in enumerate(function.outputs):
            if output.tangent is not None:
                self.add_produced("tangent", i, output.tangent)
        for i in range(function.forward, len(function.ops)):
            self.operator(i)
        for i, item in enumerate(function.inputs):
            if item.gradient is not None and item.kind == "activation":
                self.add_consumed("gradient", i, item.gradient, True)
            elif item.gradient is not None:
                self.state_gradient(i, item.gradient)
        edges = tuple(self.edges())
        limit = self.problem.memory_limit_bytes
        axis_strategies = tuple(self.axis_strategies)
        network = Network(tuple(self.seconds), tuple(self.bytes), axis_strategies, edges, limit)
        return BuiltNetwork(network, self.ops, self.boundary)

    def node(self, seconds: Floats, axis_strategies: list[Ints]) -> int:
        self.seconds.append(seconds)
        self.bytes.append(np.zeros_like(seconds))
        self.axis_strategies.append(np.stack(axis_strategies, axis=1))
        return len(self.seconds) - 1

    def boundary_node(self, kind: str, position: int, value: int) -> NodeValue:
        layouts = boundary_layouts(self.problem, value)
        if not layouts:
            raise self.no_strategy(f"value {value} ({kind} {position}) cannot lie as the rules say")
        node = self.node(np.zeros(len(layouts)), _numbered(layouts))
        self.boundary[kind, position] = (node, layouts)
        return _boundary_value(node, layouts)

    def add_produced(self, kind: str, position: int, value: int) -> None:
        self.produced[value] = self.boundary_node(kind, position, value)
        self.count_bytes(value)

    def add_consumed(self, kind: str, position: int, value: int, backward: bool) -> None:
        node_value = self.boundary_node(kind, position, value)
        self.consumed.setdefault((value, backward), []).append(node_value)

    def state_gradient(self, position: int, gradient: int) -> None:
        """A parameter's gradient must match the parameter's layout, so the input's node consumes
        it.
        """
        node, layouts = self.boundary["input", position]
        wanted = [gradient_layout(self.problem, layout) for layout in layouts]
        self.consumed.setdefault((gradient, True), []).append(_boundary_value(node, wanted))

    def operator(self, i: int) -> None:
        problem = self.problem
        op, options = problem.function.ops[i], problem.axes.ops[i].options
        usable = usable_options(problem, i)
        key = (options, usable)
        if key not in self.strategies_of:
            self.strategies_of[key] = legal_strategies(options, usable, problem.mesh)
        strategies = self.strategies_of[key]
        if not len(strategies.grid):
            raise self.no_strategy(
                f"operator {i} ({op.target}) has no option that rules and sizes allow"
            )
        node = self.node(self.prices(i, options, strategies), list(strategies.columns))
        self.ops[i] = (node, strategies)
        for position, value in enumerate(op.operands()):
            node_value = NodeValue(
                node, _placements(options, usable, position, False), strategies.columns
            )
            self.consumed.setdefault((value, i >= problem.function.forward), []).append(node_value)
        for position, value in enumerate(op.results):
            if value >= 0:
                placements = _placements(options, usable, position, True)
                self.produced[value] = NodeValue(node, placements, strategies.columns)
                self.count_bytes(value)

    def prices(self, i: int, options: tuple[OpStrategy, ...], strategies: NodeStrategies) -> Floats:
        costs, usable = self.problem.costs, strategies.usable
        if isinstance(costs, BulkCosts):
            chosen = tuple(tuple(options[n] for n in axis) for axis in usable)
            return costs.operators(i, chosen).ravel()[strategies.grid]
        strategies_of = (
            tuple(options[n] for n in strategies.options(k)) for k in range(len(strategies.grid))
        )
        return np.array([costs.operator(i, chosen) for chosen in strategies_of])

    def count_bytes(self, value: int) -> None:
        """Add the local bytes of a value that counts towards the memory limit."""
        if value not in self.memory_values:
            return
        node_value = self.produced[value]
        degrees = np.ones(len(node_value.columns[0]), dtype=np.int64)
        for axis, placements, column in zip(
            self.problem.mesh.axes, node_value.placements, node_value.columns, strict=True
        ):
            degrees *= np.array([axis.size if isinstance(s, tuple) else 1 for s in placements])[
                column
            ]
        self.bytes[node_value.node] += self.problem.function.types[value].bytes // degrees

    def edges(self) -> Iterator[ReshardEdge]:
        reshard_tables = ReshardTables(self.problem.costs, len(self.problem.mesh.axes))
        for (value, _), consumers in self.consumed.items():
            yield _edge(reshard_tables, value, self.produced[value], consumers)

    def no_strategy(self, why: str) -> PlaitError:
        return PlaitError(f"{self.problem.function.name}: {why} on {self.problem.mesh}")


def _memory_values(problem: ShardingProblem) -> frozenset[int]:
    """Parameters, buffers, and float values that forward saves for backward."""
    function = problem.function
    read = {v for op in function.backward_ops for v in op.operands()}
    produced = {v for op in function.forward_ops for v in op.results if v in read}
    saved = {v for v in produced if function.types[v].differentiable}
    return frozenset(saved | {i.value for i in function.state_inputs()})


def _placements(
    options: tuple[OpStrategy, ...], usable: Usable, position: int, result: bool
) -> tuple[tuple[AxisPlacement, ...], ...]:
    return tuple(
        tuple((options[n].outputs if result else options[n].inputs)[position] for n in axis)
        for axis in usable
    )


def _boundary_value(node: int, layouts: list[Layout]) -> NodeValue:
    placements = tuple(zip(*layouts, strict=True))
    column = np.arange(len(layouts))
    return NodeValue(node, placements, tuple(column for _ in placements))


def _numbered(layouts: list[Layout]) -> list[Ints]:
    """Per axis, the placement of every layout as a number."""
    numbers: dict[AxisPlacement, int] = {}
    return [
        np.array([numbers.setdefault(placement, len(numbers)) for placement in placements])
        for placements in zip(*layouts, strict=True)
    ]


def _edge(
    reshard_tables: ReshardTables, value: int, producer: NodeValue, consumers: list[NodeValue]
) -> ReshardEdge:
    """Build an edge: rows are the producer's distinct layouts, columns those of the consumers."""
    codes: dict[AxisPlacement, int] = {REPLICATE: 0, PARTIAL: 1}
    for node_value in (producer, *consumers):
        for placements in node_value.placements:
            for placement in placements:
                codes.setdefault(placement, len(codes))
    rows, have = np.unique(_numbers(producer, codes), return_inverse=True)
    wanted = [_numbers(consumer, codes) for consumer in consumers]
    columns, want = np.unique(np.concatenate(wanted), return_inverse=True)
    splits = np.cumsum([len(numbers) for numbers in wanted])[:-1]
    table = reshard_tables.table(value, rows, columns, tuple(codes))
    endpoints = (
        Endpoint(u.node, w) for u, w in zip(consumers, np.split(want, splits), strict=True)
    )
    return ReshardEdge(table, Endpoint(producer.node, have), tuple(endpoints))


def _numbers(node_value: NodeValue, codes: dict[AxisPlacement, int]) -> Ints:
    """Encode the layout under every strategy as one number with the axes' codes as digits."""
    numbers = np.zeros(len(node_value.columns[0]), dtype=np.int64)
    for placements, column in zip(node_value.placements, node_value.columns, strict=True):
        numbers = numbers * len(codes) + np.array([codes[s] for s in placements])[column]
    return numbers


def shardings(
    problem: ShardingProblem, built: BuiltNetwork, strategies: list[int]
) -> tuple[AxisSharding, ...]:
    """One AxisSharding per mesh axis from one strategy per node."""
    function = problem.function

    def layout(kind: str, position: int) -> Layout:
        node, known = built.boundary[kind, position]
        return known[strategies[node]]

    def gradient(position: int, item: Input) -> Layout | None:
        if item.gradient is None:
            return None
        if item.kind == "activation":
            return layout("gradient", position)
        return gradient_layout(problem, layout("input", position))

    layouts = Boundary(
        tuple(layout("input", i) for i in range(len(function.inputs))),
        tuple(gradient(i, item) for i, item in enumerate(function.inputs)),
        tuple(layout("output", i) for i in range(len(function.outputs))),
        tuple(
            None if output.tangent is None else layout("tangent", i)
            for i, output in enumerate(function.outputs)
        ),
    )
    names = [_names(problem, built, strategies, i) for i in range(len(function.ops))]
    return tuple(
        AxisSharding(
            tuple(splits[axis] for splits in names),
            layouts.map(lambda states, axis=axis: states[axis]),
        )
        for axis in range(len(problem.mesh.axes))
    )


def _names(
    problem: ShardingProblem, built: BuiltNetwork, strategies: list[int], op: int
) -> tuple[OpSplit, ...]:
    """The splits of one operator, by axis."""
    node, known = built.ops[op]
    options = problem.axes.ops[op].options
    return tuple(options[number].name for number in known.options(strategies[node]))
