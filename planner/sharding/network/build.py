"""From a sharding problem to its network, and from labels back to shardings."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from math import isfinite

import msgspec
import numpy as np

from ....ir.analysis.axes import Option
from ....ir.errors import PlaitError
from ....ir.layout import PARTIAL, REPLICATE, Layout, State
from ..data_parallel import AxisSharding
from ..problem import BulkCosts, ShardingProblem
from .labels import Ints, Labels, Usable, boundary_layouts, gradient_layout, joint, usable_options
from .moves import Floats, Moves
from .network import End, Flow, Network


class Spot(msgspec.Struct, frozen=True):
    """A value at a choice: per axis the states by column, and every label's column."""

    choice: int
    states: tuple[tuple[State, ...], ...]
    columns: tuple[Ints, ...]


class Built(msgspec.Struct, frozen=True):
    """A network, and what its choices stand for: labels of operators, layouts at the boundary."""

    network: Network
    ops: dict[int, tuple[int, Labels]]  # operator -> choice, labels
    ends: dict[tuple[str, int], tuple[int, list[Layout]]]  # ("input", position) -> choice, layouts


def build(problem: ShardingProblem) -> Built:
    """Raises PlaitError where an operator or a value at the boundary has no legal label."""
    return _Builder(problem).run()


class _Builder:
    def __init__(self, problem: ShardingProblem) -> None:
        self.problem = problem
        self.seconds: list[Floats] = []
        self.bytes: list[Floats] = []
        self.parts: list[Ints] = []
        self.lies: dict[int, Spot] = {}
        self.wants: dict[tuple[int, bool], list[Spot]] = {}
        self.ops: dict[int, tuple[int, Labels]] = {}
        self.ends: dict[tuple[str, int], tuple[int, list[Layout]]] = {}
        self.joints: dict[Hashable, Labels] = {}
        self.counted = _counted(problem) if isfinite(problem.memory_bytes) else frozenset()

    def run(self) -> Built:
        function = self.problem.function
        for i, item in enumerate(function.inputs):
            self.lie("input", i, item.value)
        for i in range(function.forward):
            self.operator(i)
        for i, output in enumerate(function.outputs):
            self.want("output", i, output.value, False)
        for i, output in enumerate(function.outputs):
            if output.tangent is not None:
                self.lie("tangent", i, output.tangent)
        for i in range(function.forward, len(function.ops)):
            self.operator(i)
        for i, item in enumerate(function.inputs):
            if item.gradient is not None and item.kind == "activation":
                self.want("gradient", i, item.gradient, True)
            elif item.gradient is not None:
                self.held_gradient(i, item.gradient)
        flows = tuple(self.flows())
        limit = self.problem.memory_bytes
        parts = tuple(self.parts)
        network = Network(tuple(self.seconds), tuple(self.bytes), parts, flows, limit)
        return Built(network, self.ops, self.ends)

    def choice(self, seconds: Floats, parts: list[Ints]) -> int:
        self.seconds.append(seconds)
        self.bytes.append(np.zeros_like(seconds))
        self.parts.append(np.stack(parts, axis=1))
        return len(self.seconds) - 1

    def boundary(self, kind: str, position: int, value: int) -> Spot:
        layouts = boundary_layouts(self.problem, value)
        if not layouts:
            raise self.stuck(f"value {value} ({kind} {position}) cannot lie as the rules say")
        choice = self.choice(np.zeros(len(layouts)), _numbered(layouts))
        self.ends[kind, position] = (choice, layouts)
        return _spot(choice, layouts)

    def lie(self, kind: str, position: int, value: int) -> None:
        self.lies[value] = self.boundary(kind, position, value)
        self.count(value)

    def want(self, kind: str, position: int, value: int, backward: bool) -> None:
        spot = self.boundary(kind, position, value)
        self.wants.setdefault((value, backward), []).append(spot)

    def held_gradient(self, position: int, gradient: int) -> None:
        """The gradient of a held input leaves as the input lies: the input's choice wants it."""
        choice, layouts = self.ends["input", position]
        wanted = [gradient_layout(self.problem, layout) for layout in layouts]
        self.wants.setdefault((gradient, True), []).append(_spot(choice, wanted))

    def operator(self, i: int) -> None:
        problem = self.problem
        op, options = problem.function.ops[i], problem.axes.ops[i].options
        usable = usable_options(problem, i)
        key = (options, usable)
        if key not in self.joints:
            self.joints[key] = joint(options, usable, problem.mesh)
        labels = self.joints[key]
        if not len(labels.grid):
            raise self.stuck(f"operator {i} ({op.target}) has no option that rules and sizes allow")
        choice = self.choice(self.prices(i, options, labels), list(labels.columns))
        self.ops[i] = (choice, labels)
        for position, value in enumerate(op.operands()):
            spot = Spot(choice, _states(options, usable, position, False), labels.columns)
            self.wants.setdefault((value, i >= problem.function.forward), []).append(spot)
        for position, value in enumerate(op.results):
            if value >= 0:
                states = _states(options, usable, position, True)
                self.lies[value] = Spot(choice, states, labels.columns)
                self.count(value)

    def prices(self, i: int, options: tuple[Option, ...], labels: Labels) -> Floats:
        costs, usable = self.problem.costs, labels.usable
        if isinstance(costs, BulkCosts):
            chosen = tuple(tuple(options[n] for n in axis) for axis in usable)
            return costs.operators(i, chosen).ravel()[labels.grid]
        joints = (tuple(options[n] for n in labels.options(k)) for k in range(len(labels.grid)))
        return np.array([costs.operator(i, chosen) for chosen in joints])

    def count(self, value: int) -> None:
        """Local bytes of a value that memory is limited for."""
        if value not in self.counted:
            return
        spot = self.lies[value]
        ways = np.ones(len(spot.columns[0]), dtype=np.int64)
        for axis, states, column in zip(
            self.problem.mesh.axes, spot.states, spot.columns, strict=True
        ):
            ways *= np.array([axis.size if isinstance(s, tuple) else 1 for s in states])[column]
        self.bytes[spot.choice] += self.problem.function.types[value].bytes // ways

    def flows(self) -> Iterator[Flow]:
        moves = Moves(self.problem.costs, len(self.problem.mesh.axes))
        for (value, _), users in self.wants.items():
            yield _flow(moves, value, self.lies[value], users)

    def stuck(self, why: str) -> PlaitError:
        return PlaitError(f"{self.problem.function.name}: {why} on {self.problem.mesh}")


def _counted(problem: ShardingProblem) -> frozenset[int]:
    """Held inputs, and float values that forward makes and backward reads."""
    function = problem.function
    read = {v for op in function.backward_ops for v in op.operands()}
    made = {v for op in function.forward_ops for v in op.results if v in read}
    saved = {v for v in made if function.types[v].is_float}
    return frozenset(saved | {i.value for i in function.held()})


def _states(
    options: tuple[Option, ...], usable: Usable, position: int, result: bool
) -> tuple[tuple[State, ...], ...]:
    return tuple(
        tuple((options[n].outputs if result else options[n].inputs)[position] for n in axis)
        for axis in usable
    )


def _spot(choice: int, layouts: list[Layout]) -> Spot:
    states = tuple(zip(*layouts, strict=True))
    column = np.arange(len(layouts))
    return Spot(choice, states, tuple(column for _ in states))


def _numbered(layouts: list[Layout]) -> list[Ints]:
    """Per axis the number of every layout's state there."""
    numbers: dict[State, int] = {}
    return [
        np.array([numbers.setdefault(state, len(numbers)) for state in states])
        for states in zip(*layouts, strict=True)
    ]


def _flow(moves: Moves, value: int, maker: Spot, users: list[Spot]) -> Flow:
    """Number the layouts that occur; rows are those of the maker, columns those of the users."""
    codes: dict[State, int] = {REPLICATE: 0, PARTIAL: 1}
    for spot in (maker, *users):
        for states in spot.states:
            for state in states:
                codes.setdefault(state, len(codes))
    rows, have = np.unique(_numbers(maker, codes), return_inverse=True)
    wanted = [_numbers(user, codes) for user in users]
    columns, want = np.unique(np.concatenate(wanted), return_inverse=True)
    cuts = np.cumsum([len(numbers) for numbers in wanted])[:-1]
    table = moves.table(value, rows, columns, tuple(codes))
    ends = (End(u.choice, w) for u, w in zip(users, np.split(want, cuts), strict=True))
    return Flow(table, End(maker.choice, have), tuple(ends))


def _numbers(spot: Spot, codes: dict[State, int]) -> Ints:
    """The layout of every label as one number, the axes' codes as digits."""
    found = np.zeros(len(spot.columns[0]), dtype=np.int64)
    for states, column in zip(spot.states, spot.columns, strict=True):
        found = found * len(codes) + np.array([codes[s] for s in states])[column]
    return found


def shardings(
    problem: ShardingProblem, built: Built, labels: list[int]
) -> tuple[AxisSharding, ...]:
    """One AxisSharding per mesh axis from one label per choice."""
    function = problem.function

    def layouts(kind: str, count: int) -> list[Layout | None]:
        found: list[Layout | None] = []
        for i in range(count):
            choice, known = built.ends.get((kind, i), (0, []))
            found.append(known[labels[choice]] if known else None)
        return found

    inputs, outputs = (layouts(k, len(getattr(function, k + "s"))) for k in ("input", "output"))
    gradients = layouts("gradient", len(inputs))
    for i, item in enumerate(function.inputs):
        if item.gradient is not None and item.kind != "activation":
            gradients[i] = gradient_layout(problem, inputs[i] or ())
    tangents = layouts("tangent", len(outputs))
    options = [built.ops[i][1].options(labels[built.ops[i][0]]) for i in range(len(function.ops))]
    return tuple(
        AxisSharding(
            tuple(o[axis] for o in options),
            tuple(x[axis] for x in inputs if x is not None),
            tuple(None if x is None else x[axis] for x in gradients),
            tuple(x[axis] for x in outputs if x is not None),
            tuple(None if x is None else x[axis] for x in tangents),
        )
        for axis in range(len(problem.mesh.axes))
    )
