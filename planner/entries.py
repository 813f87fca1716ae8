"""The price of every function under every (tensor-parallel ways, local batch, memory variant).

One entry per distinct function, never per layer. The split over the tensor-parallel axis is solved
once per (function, ways); the local form is made and priced once per local batch.
"""

from __future__ import annotations

from ..cost_model.function import FunctionCost, Pricer, count_flops
from ..ir.axes import Axes
from ..ir.cluster import Cluster
from ..ir.flow import Flow, flow
from ..ir.layout import REPLICATE, State, UnreachableLayout, fits
from ..ir.local import MICRO, Boundary, Choices, localize
from ..ir.mesh import Axis, Mesh
from ..ir.model import Call, Function, Model
from ..ir.pieces import Variant
from ..ir.plan import Sharding
from ..ir.strategy import ROLES, Strategy
from .batch import AxisSharding, split_batch
from .sharding import AxisRule, ShardingProblem, solve
from .sharding.costs import RooflineCosts


class Entries:
    """Prices of a model's functions on a cluster, made when first asked for."""

    def __init__(self, model: Model, cluster: Cluster) -> None:
        self.model, self.cluster = model, cluster
        self.flow: Flow = flow(model)
        self.functions = {f.name: f for f in model.functions}
        self.batch = {
            f.name: split_batch(f, self.flow, self.summed(f)) for f in model.functions
        }
        self.tensor: dict[tuple[str, int], AxisSharding] = {}
        self.costs: dict[tuple[str, int, int, Variant], FunctionCost | None] = {}
        self.pricers: dict[int, Pricer] = {}
        self.timed: dict[str, bool] = {}

    def summed(self, function: Function) -> frozenset[int]:
        """Outputs that stay sums over the batch: the loss."""
        found = set()
        for call in self.model.calls:
            if call.function == function.name:
                for name, output in zip(call.results, function.outputs, strict=True):
                    if name == self.model.loss:
                        found.add(output.value)
        return frozenset(found)

    def splits(self, ways: int) -> None:
        """Solve every function's split over `ways` devices, the costliest first: a parameter that
        two functions share lies as the first of them likes."""
        decided: dict[str, State] = {}
        order = sorted(self.functions.values(), key=lambda f: (-self.weight(f), f.name))
        for function in order:
            calls = [c for c in self.model.calls if c.function == function.name]
            fixed = {
                item.value: decided[name]
                for call in calls
                for item, name in zip(function.held(), call.parameters, strict=True)
                if name in decided
            }
            made = self.split(function, ways, fixed, self.weights(function, calls))
            self.tensor[function.name, ways] = made
            for call in calls:
                decided.update(zip(call.parameters, made.inputs, strict=False))

    def weights(self, function: Function, calls: list[Call]) -> frozenset[int]:
        """Weight matrices of repeated layers: the role promises that they lie in pieces."""
        if len(calls) < 2:
            return frozenset()
        held = (i.value for i in function.held() if i.gradient is not None)
        return frozenset(v for v in held if len(function.types[v].shape) > 1)

    def weight(self, function: Function) -> float:
        return sum(
            count_flops(known.declared) for known in self.flow.axes[function.name].ops
        ) * sum(call.function == function.name for call in self.model.calls)

    def split(
        self, function: Function, ways: int, fixed: dict[int, State], cut: frozenset[int]
    ) -> AxisSharding:
        """The cheapest split over one axis; what the boundary does not hold comes and leaves whole.

        `fixed` are states of held inputs that other functions share; those in `cut` must not lie
        whole on every device if any factor of theirs can be cut.
        """
        axes = self.flow.axes[function.name]
        states: dict[int, tuple[State, ...]] = {}
        for item in function.inputs:
            if item.kind == "parameter":
                cuts = _cuts(axes, item.value, ways)
                states[item.value] = cuts if cuts and item.value in cut else (REPLICATE, *cuts)
            if item.value in fixed:
                states[item.value] = (fixed[item.value],)
        loops = weight_loops(function, axes) - self.flow.batch[function.name]
        mesh = Mesh((Axis("tp", ways),))
        batch = split_values(function, self.batch[function.name], axes.ops)
        costs = RooflineCosts(function, axes, mesh, self.cluster, (1,), batch, self.model.batch)
        rule = AxisRule(loops, states)
        (made,) = solve(ShardingProblem(function, axes, mesh, (rule,), costs)).axes
        return made

    def cost(self, name: str, ways: int, local_batch: int, variant: Variant) -> FunctionCost | None:
        """The price of one call, or None where the function cannot be split so."""
        key = (name, ways, local_batch, variant)
        if key not in self.costs:
            self.costs[key] = self.price(name, ways, local_batch, variant)
        return self.costs[key]

    def price(
        self, name: str, ways: int, local_batch: int, variant: Variant
    ) -> FunctionCost | None:
        strategy = Strategy((("dp", self.model.batch // local_batch), ("tp", ways)))
        sharding = self.sharding(name, strategy, 1)
        if sharding is None:
            return None
        function = self.functions[name]
        local = localize(
            function, self.flow.axes[name], sharding.mesh, sharding.choices, sharding.boundary
        )
        if ways not in self.pricers:
            self.pricers[ways] = Pricer(self.cluster, sharding.mesh)
        pricer = self.pricers[ways]
        pricer.mesh = sharding.mesh
        return pricer.function(local, variant)

    def in_time(self, name: str) -> bool:
        """Whether a function can run on micro-batches: nothing in it mixes their samples."""
        if name not in self.timed:
            sharding = self.sharding(name, Strategy(()), 2)
            self.timed[name] = sharding is not None
            if sharding is not None:
                function, axes = self.functions[name], self.flow.axes[name]
                try:
                    localize(function, axes, sharding.mesh, sharding.choices, sharding.boundary)
                except UnreachableLayout:
                    self.timed[name] = False
        return self.timed[name]

    def sharding(self, name: str, strategy: Strategy, micro_batches: int) -> Sharding | None:
        """The split of a function under a strategy and a number of micro-batches."""
        function, axes = self.functions[name], self.flow.axes[name]
        ways = strategy.size("tp")
        if ways > 1 and (name, ways) not in self.tensor:
            self.splits(ways)
        per_axis = []
        mesh_axes = []
        for role, size in (*strategy.axes, (MICRO, micro_batches)):
            if role != MICRO and ROLES[role].stages:
                continue
            batch = role == MICRO or ROLES[role].batch
            mesh_axes.append(Axis(role, size))
            tensor = self.tensor.get((name, size)) if not batch else None
            per_axis.append(tensor or (self.batch[name] if batch else _whole(function)))
        mesh = Mesh(tuple(mesh_axes))
        boundary = join(per_axis)
        layouts = zip(
            (*(i.value for i in function.inputs), *(o.value for o in function.outputs)),
            (*boundary.inputs, *boundary.outputs),
            strict=True,
        )
        if not all(fits(axes.factors[v], layout, mesh) for v, layout in layouts):
            return None
        choices: Choices = tuple(zip(*(a.choices for a in per_axis), strict=True))
        return Sharding(name, strategy, mesh, choices, boundary)


def weight_loops(function: Function, axes: Axes) -> frozenset[int]:
    """Axes that weight matrices walk: what the role splits. Sequence and batch are other roles'."""
    weights = (i.value for i in function.held() if len(function.types[i.value].shape) > 1)
    return frozenset(atom for v in weights for dim in axes.atoms[v] for atom in dim)


def _cuts(axes: Axes, value: int, ways: int) -> tuple[State, ...]:
    """Factors of a value that `ways` divides."""
    return tuple(
        (dim, part)
        for dim, parts in enumerate(axes.factors[value])
        for part, size in enumerate(parts)
        if size % ways == 0
    )


def split_values(function: Function, sharding: AxisSharding, ops: tuple) -> frozenset[int]:  # type: ignore[type-arg]
    """Values that lie cut along the batch."""
    split = {
        i.value for i, s in zip(function.inputs, sharding.inputs, strict=True) if s != "R"
    }
    for op, known, chosen in zip(function.ops, ops, sharding.choices, strict=True):
        for value, state in zip(op.results, known.options[chosen].outputs, strict=True):
            if isinstance(state, tuple):
                split.add(value)
    return frozenset(split)


def _whole(function: Function) -> AxisSharding:
    """An axis of size one, or one that a function does not use."""
    return AxisSharding(
        (0,) * len(function.ops),
        (REPLICATE,) * len(function.inputs),
        tuple(None if i.gradient is None else REPLICATE for i in function.inputs),
        (REPLICATE,) * len(function.outputs),
        tuple(None if o.tangent is None else REPLICATE for o in function.outputs),
    )


def join(per_axis: list[AxisSharding]) -> Boundary:
    """Layouts at the boundary from the states along every axis."""

    def layouts(field: str) -> tuple:  # type: ignore[type-arg]
        columns = zip(*(getattr(a, field) for a in per_axis), strict=True)
        return tuple(None if None in states else tuple(states) for states in columns)

    return Boundary(
        layouts("inputs"), layouts("gradients"), layouts("outputs"), layouts("tangents")
    )
