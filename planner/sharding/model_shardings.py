"""Shardings of all functions of a model under a strategy; searched once per function and axes.

The axes inside a batch replica (tensor, sequence) are searched, function by function; every axis
that splits the batch follows the batch loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from math import prod

from ...cost_model.execution_model import GENERATED, ExecutionModel
from ...cost_model.operators.operator_cost import count_flops
from ...ir.analysis.bound_sharding import BoundSharding, bind
from ...ir.analysis.data_parallel import replicated, split_batch, split_values
from ...ir.analysis.sliced_weights import shards_of, sliced_weights
from ...ir.cached import cached_method
from ...ir.devices.cluster import Cluster
from ...ir.lowering.localize import localize
from ...ir.model.layout import AxisPlacement, UnreachableLayout, divides_evenly
from ...ir.model.loops import Paired
from ...ir.model.mesh import MICRO, Axis, Mesh
from ...ir.model.model import Function
from ...ir.plan.sharding import AxisSharding, Sharding, stack_boundary, stack_splits
from ...ir.plan.strategy import ROLES, Strategy
from ..question.strategy_space import ModelAxes
from . import ShardingProblem, solve
from .axis_rules import AxisContext, UnevenTokens, axis_rule
from .costs import BatchSplit, RooflineCosts
from .model_values import ModelValues

Splits = dict[str, AxisSharding]  # by axis
Layouts = dict[int, tuple[AxisPlacement, ...]]  # of values, one placement per axis
MustShard = Callable[[Function, int], frozenset[int]]  # of a function with that many calls


def matrices_of_layers(function: Function, calls: int) -> frozenset[int]:
    """Weight matrices of repeated layers, which a tensor axis always shards."""
    if calls < 2:
        return frozenset()
    weights = (i.value for i in function.state_inputs() if i.gradient is not None)
    return frozenset(v for v in weights if len(function.types[v].shape) > 1)


class ModelShardings:
    """Shards the functions of one model on one cluster; `must_shard`: weights never replicated."""

    def __init__(
        self,
        values: ModelValues,
        cluster: Cluster,
        execution: ExecutionModel = GENERATED,
        must_shard: MustShard = matrices_of_layers,
    ) -> None:
        self.values, self.cluster, self.must_shard = values, cluster, must_shard
        self.execution = execution
        self.model, self.functions, self.flow = values.model, values.functions, values.flow
        self.sliced_weights = sliced_weights(self.flow)

    @property
    def has_experts(self) -> bool:
        """Whether some function has experts that an axis can split."""
        return self.along_batch("experts") != self.along_batch(None)

    @cached_method
    def along_batch(self, apart: Paired | None) -> dict[str, AxisSharding]:
        """By function, its sharding along the batch, with experts or rows of tables `apart`."""
        summed = self.values.summed_values
        return {
            f.name: split_batch(f, self.flow, summed[f.name], apart) for f in self.model.functions
        }

    def sharding(self, name: str, strategy: Strategy, micro_batches: int) -> Sharding | None:
        """Sharding of a function under a strategy, for micro-batches; None where there is none."""
        searched = self.searched_axes(strategy.searched_axes, _expert_degree(strategy))
        if searched is None:
            return None
        sharding = self.unchecked(name, strategy, micro_batches, searched)
        return sharding if next(self.uneven_values(sharding), None) is None else None

    def unchecked(
        self, name: str, strategy: Strategy, micro_batches: int, searched: dict[str, Splits]
    ) -> Sharding:
        """Sharding of a function under a strategy, whether or not sizes divide."""
        axes = [
            Axis(role, size)
            for role, size in ((MICRO, micro_batches), *strategy.axes)
            if role not in ROLES or not ROLES[role].stages
        ]
        per_axis = [
            searched[name].get(axis.name) or self.unsearched_axis(name, axis) for axis in axes
        ]
        mesh, boundary = Mesh(tuple(axes)), stack_boundary(per_axis)
        return Sharding(name, strategy, mesh, stack_splits(per_axis), boundary)

    def uneven_values(self, sharding: Sharding) -> Iterator[int]:
        """Values at a function's boundary whose sizes do not divide by the axes that shard them."""
        function, boundary = self.functions[sharding.function], sharding.boundary
        factors = self.flow.axes[sharding.function].factors
        layouts = zip(
            (*(i.value for i in function.inputs), *(o.value for o in function.outputs)),
            (*boundary.inputs, *boundary.outputs),
            strict=True,
        )
        for value, layout in layouts:
            if not divides_evenly(factors[value], layout, sharding.mesh):
                yield value

    def uneven(self, name: str, strategy: Strategy, micro_batches: int) -> str:
        """Which value of which operator of a function does not divide by a strategy's axes."""
        try:
            searched = self.solve_axes(strategy.searched_axes, _expert_degree(strategy))
        except UnevenTokens as error:
            return f"{strategy}: {error}"
        function = self.functions[name]
        for value in self.uneven_values(self.unchecked(name, strategy, micro_batches, searched)):
            near = (op for op in function.ops if value in (*op.results, *op.operands()))
            op = next(near, None)
            where = "" if op is None else f" of {op.place()}"
            shape = list(function.types[value].shape)
            parts = f" and {micro_batches} micro-batches" if micro_batches > 1 else ""
            return f"{name}: {shape}{where} does not divide by {strategy}{parts}"
        return ""

    def unsearched_axis(self, name: str, axis: Axis) -> AxisSharding:
        """Sharding along an axis over micro-batches, the batch or experts, or replicated."""
        role = axis.name
        if role not in ROLES:
            return self.along_batch(None)[name]
        if ROLES[role].slices:
            return self.sliced_sharding(name, axis.size)
        if ROLES[role].batch:
            return self.along_batch(ROLES[role].paired)[name]
        return replicated(self.functions[name])

    @cached_method
    def sliced_sharding(self, name: str, degree: int) -> AxisSharding:
        """Sharding along the batch with weights that operators gather in slices."""
        function, summed = self.functions[name], self.values.summed_values[name]
        weights = shards_of(self.flow.axes[name], self.sliced_weights[name], degree)
        return split_batch(function, self.flow, summed, weights=weights)

    def bind(self, sharding: Sharding) -> BoundSharding:
        """A sharding with its function."""
        return bind(sharding, self.functions[sharding.function], self.flow.axes[sharding.function])

    @cached_method
    def local_function(self, sharding: Sharding) -> Function:
        """The per-device function of a sharding; raises UnreachableLayout."""
        return localize(self.bind(sharding))

    @cached_method
    def micro_batchable(self, name: str) -> bool:
        """Whether a function can run on micro-batches: nothing in it mixes their samples."""
        sharding = self.sharding(name, Strategy(()), 2)
        if sharding is None:
            return False
        try:
            self.local_function(sharding)
        except UnreachableLayout:
            return False
        return True

    @cached_method
    def searched_axes(
        self, searched_axes: ModelAxes, expert_degree: int
    ) -> dict[str, Splits] | None:
        """Sharding of every function over the searched axes, beside an axis of experts; None where
        tokens do not divide."""
        try:
            return self.solve_axes(searched_axes, expert_degree)
        except UnevenTokens:
            return None

    def solve_axes(self, searched_axes: ModelAxes, expert_degree: int) -> dict[str, Splits]:
        """Search the sharding of every function, the costliest first: it decides the layout of the
        parameters that it shares.
        """
        if all(size == 1 for _, size in searched_axes):
            return {name: {} for name in self.functions}
        layout_of: dict[str, tuple[AxisPlacement, ...]] = {}
        shardings: dict[str, Splits] = {}
        for function in sorted(self.functions.values(), key=lambda f: (-self.flops(f), f.name)):
            call = next(c for c in self.model.calls if c.function == function.name)
            groups = [self.same_layout[name] for name in call.parameters]
            fixed: Layouts = {
                item.value: layout_of[group]
                for item, group in zip(function.state_inputs(), groups, strict=True)
                if group in layout_of
            }
            splits = self.shard_function(function, searched_axes, expert_degree, fixed)
            shardings[function.name] = splits
            states = zip(*(axis.boundary.inputs for axis in splits.values()), strict=True)
            layout_of.update(zip(groups, states, strict=False))
        return shardings

    @cached_property
    def same_layout(self) -> dict[str, str]:
        """By parameter, one of those that some function takes in the same place, here or through others:
        they have one layout."""
        first: dict[str, str] = {}
        places: dict[tuple[str, int], str] = {}
        for call in self.model.calls:
            for place, name in enumerate(call.parameters):
                one = first.setdefault(name, name)
                other = places.setdefault((call.function, place), one)
                joined = first[other]
                if joined != one:
                    first.update({n: joined for n, group in first.items() if group == one})
        return first

    def expert_loops(self, function: Function, degree: int) -> dict[int, int]:
        """The loops over experts, and by how much an axis of experts splits them: as far as can be where
        they are placed one by one, so that no other axis does."""
        axes, shardings = (
            self.flow.axes[function.name],
            (self.along_batch("experts"), self.along_batch(None)),
        )
        apart, together = (s[function.name].boundary.inputs for s in shardings)
        inputs = zip(function.inputs, apart, together, strict=True)
        loops = {
            axes.factor_ids[item.value][placement[0]][placement[1]]
            for item, placement, other in inputs
            if item.kind == "parameter" and isinstance(placement, tuple) and placement != other
        }
        one_by_one = degree > 1 and self.execution.routing.spare_slots > 0
        return {loop: axes.sizes[loop] if one_by_one else degree for loop in loops}

    def flops(self, function: Function) -> float:
        """Floating-point operations of all calls of a function."""
        ops = self.flow.axes[function.name].ops
        return sum(count_flops(known.declared) for known in ops) * self.call_count(function)

    def call_count(self, function: Function) -> int:
        return sum(call.function == function.name for call in self.model.calls)

    def shard_function(
        self, function: Function, searched_axes: ModelAxes, expert_degree: int, fixed: Layouts
    ) -> Splits:
        """The cheapest sharding of one function, jointly over all searched axes.

        `fixed`: layouts of parameters by value that another function decided.
        """
        axes, values = self.flow.axes[function.name], self.values
        split_axes = [
            (role, size) for role, size in searched_axes if ROLES[role].searched and size > 1
        ]
        context = AxisContext(
            Strategy(searched_axes).sequence_parallel,
            values.batch_only_values[function.name],
            values.loss_values[function.name],
            self.must_shard(function, self.call_count(function)),
            self.expert_loops(function, expert_degree),
        )
        rules = tuple(
            axis_rule(
                Axis(role, size),
                function,
                self.flow,
                context,
                {value: states[i] for value, states in fixed.items()},
            )
            for i, (role, size) in enumerate(split_axes)
        )
        mesh = Mesh(tuple(Axis(role, size) for role, size in split_axes))
        strides = tuple(mesh.stride(i) for i in range(len(split_axes)))
        batched = split_values(function, axes, self.along_batch(None)[function.name])
        batch = BatchSplit(batched, self.model.batch)
        costs = RooflineCosts(function, axes, mesh, self.cluster, strides, batch, self.execution)
        shardings = solve(ShardingProblem(function, axes, mesh, rules, costs)).axes
        return {role: axis for (role, _), axis in zip(split_axes, shardings, strict=True)}


def _expert_degree(strategy: Strategy) -> int:
    """Ranks that share the experts of a layer."""
    return prod(size for role, size in strategy.axes if ROLES[role].experts)
