"""The local form of a function: what one rank computes when every operator is split as chosen.

Walks the joint graph once. Where an operator wants an operand in another layout than it lies in, the
collectives between the two layouts are inserted as operators `comm.*`; everything else stays a plain
operator on local shards, with its shape literals rebuilt from the local sizes of its loops. The
result is a `Function` again: it is what the cost model prices and what codegen prints.

The mesh may begin with an axis `micro`: micro-batches, a split in time, and end with an axis `split`:
pieces of one micro-batch. Data can be cut along them and sums may stay open over them; nothing can be
gathered or reduced, which is what the planner must avoid.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import msgspec
from msgspec.structs import replace

from ..analysis.axes import Axes, OpAxes, Option
from ..layout import (
    REPLICATE,
    Factors,
    Layout,
    State,
    Step,
    UnreachableLayout,
    along,
    local_type,
    transition,
)
from ..loops import Dims, Loops, placed_name
from ..mesh import Mesh
from ..model import Argument, Function, Input, Op, Output, Ref, map_refs
from ..tensor import TensorType

MICRO = "micro"
SPLIT = "split"
IN_TIME = {MICRO: "micro-batches", SPLIT: "pieces"}
Choices = tuple[tuple[int, ...], ...]
VIEWS = frozenset({"aten.view.default", "aten._unsafe_view.default"})
Held = tuple[Layout, int, bool]  # layout, local value, made in backward
Ways = dict[tuple[str, int], tuple[int, ...]]


class Boundary(msgspec.Struct, frozen=True):
    """Layouts in which a function takes and gives its values; `None` where there is no value."""

    inputs: tuple[Layout, ...]
    gradients: tuple[Layout | None, ...]
    outputs: tuple[Layout, ...]
    tangents: tuple[Layout | None, ...]


class AxisSharding(msgspec.Struct, frozen=True):
    """One mesh axis of a function: the option of every operator, and the states at the boundary."""

    choices: tuple[int, ...]
    inputs: tuple[State, ...]
    gradients: tuple[State | None, ...]
    outputs: tuple[State, ...]
    tangents: tuple[State | None, ...]


def extended(choices: Choices, boundary: Boundary, inner: AxisSharding) -> tuple[Choices, Boundary]:
    """A sharding with one more axis inside all others."""

    def more(field: str) -> tuple:  # type: ignore[type-arg]
        pairs = zip(getattr(boundary, field), getattr(inner, field), strict=True)
        return tuple(None if layout is None else (*layout, state) for layout, state in pairs)

    taken = tuple((*c, own) for c, own in zip(choices, inner.choices, strict=True))
    return taken, Boundary(more("inputs"), more("gradients"), more("outputs"), more("tangents"))


def localize(
    function: Function, axes: Axes, mesh: Mesh, choices: Choices, boundary: Boundary
) -> Function:
    """The local form; raises UnreachableLayout when an operand cannot be brought into place."""
    return _Localizer(function, axes, mesh, boundary).run(choices)


class _Localizer:
    def __init__(self, function: Function, axes: Axes, mesh: Mesh, boundary: Boundary) -> None:
        self.function, self.axes, self.mesh, self.boundary = function, axes, mesh, boundary
        self.types: list[TensorType] = []
        self.ops: list[Op] = []
        # original value -> copies at hand, as made first
        self.held: dict[int, list[Held]] = {}
        self.backward = False

    def run(self, choices: Choices) -> Function:
        function, boundary = self.function, self.boundary
        sources = [
            (i.value, layout) for i, layout in zip(function.inputs, boundary.inputs, strict=True)
        ]
        sources += [
            (o.tangent, layout)
            for o, layout in zip(function.outputs, boundary.tangents, strict=True)
            if o.tangent is not None and layout is not None
        ]
        entry = {value: self.add(value, layout) for value, layout in sources}
        self.walk(function.forward_ops, choices[: function.forward], 0)
        results = [
            self.fetch(o.value, layout)
            for o, layout in zip(function.outputs, boundary.outputs, strict=True)
        ]
        forward, self.backward = len(self.ops), True
        self.walk(function.backward_ops, choices[function.forward :], function.forward)
        inputs = []
        for item, layout in zip(function.inputs, boundary.gradients, strict=True):
            gradient = None
            if item.gradient is not None and layout is not None:
                gradient = self.fetch(item.gradient, layout)
            inputs.append(Input(entry[item.value], item.kind, item.name, gradient))
        outputs = tuple(
            Output(value, None if o.tangent is None else entry[o.tangent])
            for o, value in zip(function.outputs, results, strict=True)
        )
        return Function(
            function.name, tuple(self.types), tuple(inputs), outputs, tuple(self.ops), forward
        )

    def walk(self, ops: Iterable[Op], choices: Choices, first: int) -> None:
        for i, (op, chosen) in enumerate(zip(ops, choices, strict=True)):
            known = self.axes.ops[first + i]
            self.step(op, known, tuple(known.options[c] for c in chosen))

    def step(self, op: Op, known: OpAxes, options: tuple[Option, ...]) -> None:
        """One operator: bring its operands into place, then run it on the local shards."""
        locals_ = [
            self.fetch(value, tuple(option.inputs[i] for option in options))
            for i, value in enumerate(op.operands())
        ]
        queue = iter(locals_)
        args = tuple(map_refs(a, lambda _: Ref(next(queue))) for a in op.args)
        kwargs = {k: map_refs(a, lambda _: Ref(next(queue))) for k, a in op.kwargs.items()}
        # A shard need not be contiguous where the whole was: reshape copies only then.
        target = "aten.reshape.default" if op.target in VIEWS else op.target
        local = Op(target, args, kwargs, (), op.scope)
        if known.declared is not None:
            ways = self.ways(options)
            local = replace(local, args=self.rebuild(args, known, ways))
            local = self.placed(local, known, known.declared, options, ways)
        pieces = prod(axis.size for axis, o in zip(self.mesh.axes, options, strict=True) if o.mean)
        results = []
        for i, value in enumerate(op.results):
            layout = tuple(option.outputs[i] for option in options)
            results.append(self.add(value, layout) if value >= 0 else -1)
        self.ops.append(replace(local, results=tuple(results)))
        if pieces > 1:
            self.average(op, results, pieces)

    def average(self, op: Op, results: list[int], pieces: int) -> None:
        """The mean over a shard counts for its part of the whole mean."""
        for value, local in zip(op.results, results, strict=True):
            if local < 0:
                continue
            scaled = self.new(self.types[local])
            self.ops.append(Op("aten.div.Scalar", (Ref(local), pieces), {}, (scaled,), op.scope))
            layout, _, late = self.held[value][0]
            self.held[value][0] = (layout, scaled, late)

    def ways(self, options: tuple[Option, ...]) -> Ways:
        """Mesh axes that split each (loop, part), outermost first."""
        found: Ways = {}
        for axis, option in enumerate(options):
            if self.mesh.axes[axis].size > 1:
                for cut in option.cuts:
                    found[cut] = (*found.get(cut, ()), axis)
        return found

    def rebuild(
        self, args: tuple[Argument, ...], known: OpAxes, ways: Ways
    ) -> tuple[Argument, ...]:
        """Literal shapes of dims, with the loops' local sizes."""
        assert known.declared is not None
        changed = list(args)
        for position, dims in known.declared.shapes:
            sizes = tuple(self.extent(known, dim, ways) for dim in dims)
            changed[position] = sizes if isinstance(args[position], tuple) else prod(sizes)
        return tuple(changed)

    def extent(self, known: OpAxes, dim: tuple[str, ...], ways: Ways) -> int:
        size = 1
        for name in dim:
            for part, whole in enumerate(known.parts[name]):
                cut = prod(self.mesh.axes[a].size for a in ways.get((name, part), ()))
                size *= whole // cut
        return size

    def placed(
        self, op: Op, known: OpAxes, declared: Loops, options: tuple[Option, ...], ways: Ways
    ) -> Op:
        """The form that is told where its shard lies and over which axes it joins, if it asks."""
        split = {loop for loop, _ in ways}
        over = tuple(
            axis.name
            for axis, option in zip(self.mesh.axes, options, strict=True)
            if axis.size > 1 and (option.joint or option.partner is not None)
        )
        for name in (n for n in over if n in IN_TIME):
            raise UnreachableLayout(f"{self.function.name}: {op.target} would join {IN_TIME[name]}")
        asked = [(p, dims) for p, dims in declared.places if split & {n for d in dims for n in d}]
        if not asked and not over:
            return op
        args = list(op.args)
        for position, dims in asked:
            args[position : position + 1] = [self.places(known, dims, ways)]
        kwargs = {**op.kwargs, "over": over} if over else op.kwargs
        return Op(placed_name(op.target), tuple(args), kwargs, (), op.scope)

    def places(self, known: OpAxes, dims: Dims, ways: Ways) -> tuple[Argument, ...]:
        """Factors of these dims, outermost first: (local size, stride in the whole, axes)."""
        found: list[Argument] = []
        stride = 1
        for name in reversed([name for dim in dims for name in dim]):
            for part in reversed(range(len(known.parts[name]))):
                whole, axes = known.parts[name][part], ways.get((name, part), ())
                cut = prod(self.mesh.axes[a].size for a in axes)
                found.insert(0, (whole // cut, stride, tuple(self.mesh.axes[a].name for a in axes)))
                stride *= whole
        return tuple(found)

    def new(self, type_: TensorType) -> int:
        self.types.append(type_)
        return len(self.types) - 1

    def settled(self, layout: Layout) -> Layout:
        """The layout with nothing to say about axes of one device: there, all states are one."""
        pairs = zip(layout, self.mesh.axes, strict=True)
        return tuple(REPLICATE if axis.size == 1 else state for state, axis in pairs)

    def add(self, value: int, layout: Layout) -> int:
        """A new local value that holds `value` in this layout."""
        layout = self.settled(layout)
        local = self.new(self.piece(value, layout))
        self.held.setdefault(value, []).insert(0, (layout, local, self.backward))
        return local

    def piece(self, value: int, layout: Layout) -> TensorType:
        return local_type(self.function.types[value], self.axes.factors[value], layout, self.mesh)

    def fetch(self, value: int, layout: Layout) -> int:
        """The local value of `value` in a layout, redistributing when it lies in another."""
        layout = self.settled(layout)
        held = self.usable(value)
        for found, local, _ in held:
            if found == layout:
                return local
        routes = [(transition(source, layout), local) for source, local, _ in held]
        route, local = min(routes, key=lambda r: sum(s.kind not in ("cut", "share") for s in r[0]))
        for step in route:
            local = self.collective(local, value, self.axes.factors[value], step)
        self.held[value].append((layout, local, self.backward))
        return local

    def usable(self, value: int) -> list[Held]:
        """Copies at hand. Backward takes no copy that is larger than the original lies: gathering
        again costs a collective, keeping what was gathered costs memory until then."""
        held = self.held[value]
        if not self.backward:
            return held
        original = self.types[held[0][1]].elements
        return [h for h in held if h[2] or self.types[h[1]].elements <= original]

    def collective(self, local: int, value: int, factors: Factors, step: Step) -> int:
        axis = self.mesh.axes[step.axis]
        if axis.name in IN_TIME and step.kind not in ("cut", "share"):
            raise UnreachableLayout(
                f"{self.function.name}: value {value} would need {step.kind} over {IN_TIME[axis.name]}"
            )
        result = self.new(local_type(self.function.types[value], factors, step.after, self.mesh))
        args: tuple[Argument, ...] = (Ref(local), axis.name)
        kwargs: dict[str, Argument] = {}
        if isinstance(step.source, tuple):
            args += along(factors, step.before, self.mesh, step.source)
        if isinstance(step.target, tuple):
            args += along(factors, step.after, self.mesh, step.target)
        self.ops.append(Op(f"comm.{step.kind}", args, kwargs, (result,)))
        return result
