"""Prices of every function under all model axes, local batches and memory actions.

Functions are priced, not layers. The sharding over the axes inside a batch replica (tensor,
sequence, experts) is searched once per function and axes; the per-device functions of two small
batches then give the price for every local batch.
"""

from __future__ import annotations

from collections.abc import Collection
from math import gcd, prod

import msgspec

from ...cost_model.execution_model import GENERATED, ExecutionModel
from ...cost_model.memory.offload import chunked_cost, offloaded_cost, repeated
from ...cost_model.operators.function_cost import FunctionCost, FunctionCostTable
from ...cost_model.operators.operator_cost import BATCH, OperatorLoad, Pricer, count_flops
from ...ir.analysis.dataflow import Dataflow, analyse_dataflow
from ...ir.devices.cluster import Cluster
from ...ir.layout import PARTIAL, AxisPlacement, UnreachableLayout, divides_evenly
from ...ir.lowering.bound_sharding import bind
from ...ir.lowering.localize import localize
from ...ir.mesh import MICRO, Axis, Mesh
from ...ir.model import Call, Function, Model
from ...ir.plan.memory_action import MemoryAction, Variant
from ...ir.plan.sharding import AxisSharding, Chunking, Sharding, stack_boundary, stack_splits
from ...ir.plan.strategy import ROLES, Strategy
from ...ir.plan.workload import CallWork
from ..activations.chunking import Chunker
from ..activations.recompute_ilp import select_saved
from ..compression.activations import ActivationCompressor
from ..sharding import ShardingProblem, solve
from ..sharding.axis_rules import UnevenTokens, axis_rule
from ..sharding.costs import RooflineCosts
from ..sharding.data_parallel import replicated, split_batch, split_values
from ..strategy_space import ModelAxes

Splits = dict[str, AxisSharding]  # by axis
TableKey = tuple[str, ModelAxes, bool, int]  # function, axes, whether one replica, chunks


class CallPrice(msgspec.Struct, frozen=True):
    """Price of one call, and local bytes of its gradients to all-reduce, by axis."""

    cost: FunctionCost
    partial_gradient_bytes: dict[str, int]


class FunctionPriceTable(msgspec.Struct, frozen=True):
    """Prices of a function under its model axes, for every local batch."""

    costs: FunctionCostTable
    partial_gradient_bytes: dict[str, int]


class FunctionPrices:
    """Prices of a model's functions on a cluster, computed on first use."""

    def __init__(
        self,
        model: Model,
        cluster: Cluster,
        execution: ExecutionModel = GENERATED,
        activations: ActivationCompressor | None = None,
    ) -> None:
        self.model, self.cluster, self.execution = model, cluster, execution
        self.flow: Dataflow = analyse_dataflow(model)
        self.functions = {f.name: f for f in model.functions}
        # names of values computed from the batch alone
        self.batch_only_names = {
            name for i in model.batch_only_calls() for name in model.calls[i].results
        }
        self.batch_only_names.update(item.name for item in model.inputs)
        self.loss_values = {f.name: self.values_named(f, {model.loss}) for f in model.functions}
        self.batch_only_values = {
            f.name: self.values_named(f, self.batch_only_names) for f in model.functions
        }
        self.batch_shardings, self.expert_shardings = (
            {
                f.name: split_batch(f, self.flow, self.loss_values[f.name], apart)
                for f in model.functions
            }
            for apart in (False, True)
        )
        self.activations = activations or ActivationCompressor()
        self.chunker = Chunker(self.flow, self.loss_values)
        self.shardings: dict[ModelAxes, dict[str, Splits] | None] = {}
        self.tables: dict[TableKey, FunctionPriceTable | None] = {}
        self.known_prices: dict[tuple[str, ModelAxes, int, MemoryAction], CallPrice | None] = {}
        self.saved_selection: dict[tuple[TableKey, MemoryAction], tuple[int, ...]] = {}
        self.loads: dict[tuple[object, ...], OperatorLoad] = {}
        self.batch_divisors: dict[str, int] = {}
        self.micro_batchable_functions: dict[str, bool] = {}

    @property
    def has_experts(self) -> bool:
        """Whether some function has experts that an axis can split."""
        return any(
            self.expert_shardings[name] != self.batch_shardings[name] for name in self.functions
        )

    @property
    def has_tokens(self) -> bool:
        """Whether samples have a token dimension that an axis can split."""
        return any(self.flow.token_factors.values())

    def values_named(self, function: Function, names: Collection[str]) -> frozenset[int]:
        """Activations and outputs of a function that some call binds to one of these names."""
        boundary = [i.value for i in function.activations()] + [o.value for o in function.outputs]
        return frozenset(
            value
            for call in self.model.calls
            if call.function == function.name
            for name, value in zip((*call.arguments, *call.results), boundary, strict=True)
            if name in names
        )

    def axis_shardings(self, model_axes: ModelAxes) -> dict[str, Splits] | None:
        """Sharding of every function over the searched axes; None where tokens do not divide."""
        if model_axes not in self.shardings:
            try:
                self.shardings[model_axes] = self.solve_axes(model_axes)
            except UnevenTokens:
                self.shardings[model_axes] = None
        return self.shardings[model_axes]

    def solve_axes(self, model_axes: ModelAxes) -> dict[str, Splits]:
        """Search the sharding of every function, the costliest first: it decides the layout of the
        parameters that it shares.
        """
        if all(size == 1 for _, size in model_axes):
            return {name: {} for name in self.functions}
        layout_of: dict[str, tuple[AxisPlacement, ...]] = {}
        shardings: dict[str, Splits] = {}
        by_flops = sorted(self.functions.values(), key=lambda f: (-self.flops(f), f.name))
        for function in by_flops:
            calls = [c for c in self.model.calls if c.function == function.name]
            fixed_layouts = {
                item.value: layout_of[name]
                for call in calls
                for item, name in zip(function.state_inputs(), call.parameters, strict=True)
                if name in layout_of
            }
            splits = self.shard_function(
                function, model_axes, fixed_layouts, self.must_shard(function, calls)
            )
            shardings[function.name] = {name: axis for (name, _), axis in splits}
            for call in calls:
                states = zip(*(axis.boundary.inputs for _, axis in splits), strict=True)
                layout_of.update(zip(call.parameters, states, strict=False))
        return shardings

    def must_shard(self, function: Function, calls: list[Call]) -> frozenset[int]:
        """Weight matrices of repeated layers, which a tensor axis always shards."""
        if len(calls) < 2:
            return frozenset()
        weights = (i.value for i in function.state_inputs() if i.gradient is not None)
        return frozenset(v for v in weights if len(function.types[v].shape) > 1)

    def flops(self, function: Function) -> float:
        """Floating-point operations of all calls of a function."""
        return sum(
            count_flops(known.declared) for known in self.flow.axes[function.name].ops
        ) * sum(call.function == function.name for call in self.model.calls)

    def shard_function(
        self,
        function: Function,
        model_axes: ModelAxes,
        fixed: dict[int, tuple[AxisPlacement, ...]],
        must_shard: frozenset[int],
    ) -> list[tuple[tuple[str, int], AxisSharding]]:
        """The cheapest sharding of one function, jointly over all searched axes.

        `fixed`: layouts of parameters by value, one placement per axis; `must_shard`: weights that
        may not be replicated.
        """
        axes = self.flow.axes[function.name]
        searched_axes = [
            (role, size) for role, size in model_axes if ROLES[role].searched and size > 1
        ]
        rules = tuple(
            axis_rule(
                role,
                size,
                function,
                self.flow,
                tokens_sharded=Strategy(model_axes).sequence_parallel,
                batch_only=self.batch_only_values[function.name],
                summed=self.loss_values[function.name],
                must_shard=must_shard,
                fixed={value: states[i] for value, states in fixed.items()},
            )
            for i, (role, size) in enumerate(searched_axes)
        )
        mesh = Mesh(tuple(Axis(role, size) for role, size in searched_axes))
        strides = tuple(mesh.stride(i) for i in range(len(searched_axes)))
        batch = split_values(function, axes, self.batch_shardings[function.name])
        costs = RooflineCosts(function, axes, mesh, self.cluster, strides, batch, self.model.batch)
        shardings = solve(ShardingProblem(function, axes, mesh, rules, costs)).axes
        return list(zip(searched_axes, shardings, strict=True))

    def token_degree(self, model_axes: ModelAxes) -> int:
        """Number of shards of the tokens of values between calls."""
        flag = Strategy(model_axes).sequence_parallel
        return prod(
            n for role, n in model_axes if ROLES[role].sequence or (flag and ROLES[role].operators)
        )

    def call_price(
        self, name: str, model_axes: ModelAxes, local_batch: int, memory: MemoryAction
    ) -> CallPrice | None:
        """Price of one call, or None where the function cannot be sharded so; cached."""
        key = (name, model_axes, local_batch, memory)
        if key not in self.known_prices:
            self.known_prices[key] = self.compute_price(name, model_axes, local_batch, memory)
        return self.known_prices[key]

    def compute_price(
        self, name: str, model_axes: ModelAxes, local_batch: int, memory: MemoryAction
    ) -> CallPrice | None:
        """Price of one call for `local_batch` samples per device, or None."""
        inner_degree, chunks = self.inner_batch_degree(model_axes), memory.chunks
        replicas, remainder = divmod(self.model.batch, local_batch * inner_degree)
        samples = self.chunker.samples_multiple(self.functions[name], chunks)
        if (
            remainder
            or self.batch_divisor(name) % (replicas * inner_degree)
            or local_batch % samples
        ):
            return None
        table = self.table(name, model_axes, local_batch)
        if table is None:
            return None
        reductions = self.activations.reductions(self, model_axes, local_batch)
        cost = table.costs.at(
            local_batch, self.variant(name, model_axes, local_batch, memory), replicas, reductions
        )
        if memory.on_host:
            cost = offloaded_cost(cost, self.cluster.device)
        if chunks > 1:
            chunk_table = self.table(name, model_axes, local_batch, chunks)
            if chunk_table is None:
                return None
            cost = chunked_cost(
                chunk_table.costs, table.costs, cost, local_batch, chunks, replicas, reductions
            )
        return CallPrice(cost, table.partial_gradient_bytes)

    def table(
        self, name: str, model_axes: ModelAxes, local_batch: int, chunks: int = 1
    ) -> FunctionPriceTable | None:
        """Prices of a function, or of one of its chunks; cached.

        A single replica is priced by itself: without communication its per-device function has
        fewer operators.
        """
        key = self.table_key(name, model_axes, local_batch, chunks)
        if key not in self.tables:
            batch = self.model.batch // self.inner_batch_degree(model_axes)
            self.tables[key] = self.build_table(name, model_axes, batch, *key[2:])
        return self.tables[key]

    def table_key(
        self, name: str, model_axes: ModelAxes, local_batch: int, chunks: int = 1
    ) -> TableKey:
        """Key of the table that prices this local batch."""
        return (
            name,
            model_axes,
            local_batch * self.inner_batch_degree(model_axes) == self.model.batch,
            chunks,
        )

    @staticmethod
    def inner_batch_degree(model_axes: ModelAxes) -> int:
        """Degree by which model axes (experts) split the batch."""
        return prod(size for role, size in model_axes if ROLES[role].batch)

    def variant(
        self, name: str, model_axes: ModelAxes, local_batch: int, memory: MemoryAction
    ) -> Variant:
        """The values that forward saves for backward under a memory action."""
        if not memory.partial:
            return memory.variant(())
        table = self.table(name, model_axes, local_batch)
        assert table is not None
        key = self.table_key(name, model_axes, local_batch), memory
        if key not in self.saved_selection:
            self.saved_selection[key] = select_saved(table.costs, memory.saved_fraction)
        return self.saved_selection[key]

    def saved_values(
        self, sharding: Sharding, model_axes: ModelAxes, local_batch: int, memory: MemoryAction
    ) -> tuple[int, ...]:
        """Values to save in the per-device function that is generated.

        Those that were priced, if both functions have the same operators; else selected anew.
        """
        if not memory.partial:
            return ()
        name = sharding.function
        table = self.table(name, model_axes, local_batch)
        saved = self.variant(name, model_axes, local_batch, memory)
        assert table is not None
        assert isinstance(saved, tuple)
        local = self.local_function(sharding)
        if [op.target for op in local.ops] == [
            op.target for op in table.costs.local_functions[0].ops
        ]:
            return saved
        pricer = Pricer(self.cluster, sharding.mesh, self.loads, self.execution)
        per_device_table = FunctionCostTable(pricer, (local, local), (local_batch, local_batch))
        return select_saved(per_device_table, memory.saved_fraction)

    def workloads(
        self, name: str, model_axes: ModelAxes, local_batch: int, memory: MemoryAction
    ) -> tuple[CallWork, CallWork]:
        """Kernels and communication of forward and of backward of one call that has a price."""
        replicas = self.model.batch // (local_batch * self.inner_batch_degree(model_axes))
        chunks = memory.chunks
        table = self.table(name, model_axes, local_batch, chunks)
        assert table is not None
        variant = self.variant(name, model_axes, local_batch, memory)
        forward, backward = table.costs.amounts(local_batch, variant, replicas)
        copied_bytes = (
            table.costs.at(local_batch, variant, replicas).all_saved_bytes if memory.on_host else 0
        )
        return repeated(forward, chunks, copied_bytes), repeated(backward, chunks, copied_bytes)

    def chunking(self, sharding: Sharding, memory: MemoryAction) -> Chunking:
        """Chunked execution of a function that has a price for it."""
        function, axes = self.functions[sharding.function], self.flow.axes[sharding.function]
        chunked = self.chunker.chunk(bind(sharding, function, axes), memory.chunks)
        assert chunked is not None
        return chunked.chunking

    def local_function(self, sharding: Sharding) -> Function:
        """The per-device function of a sharding."""
        function = self.functions[sharding.function]
        return localize(bind(sharding, function, self.flow.axes[function.name]))

    def producers(self, sharding: Sharding, values: tuple[int, ...]) -> tuple[str, ...]:
        """Module and operator that produce these values of the per-device function, for people."""
        local, wanted = self.local_function(sharding), set(values)
        operators = [op for op in local.forward_ops if wanted & set(op.results)]
        return tuple(
            dict.fromkeys(f"{op.scope} {op.target.split('.')[1]}".strip() for op in operators)
        )

    def batch_divisor(self, name: str) -> int:
        """The largest degree by which the batch dimension of every value of a function divides."""
        if name not in self.batch_divisors:
            function, axes = self.functions[name], self.flow.axes[name]
            shards = ((v, self.flow.batch_shard(function, v)) for v in range(len(function.types)))
            sizes = [
                axes.factors[v][shard[0]][shard[1]] for v, shard in shards if shard is not None
            ]
            self.batch_divisors[name] = gcd(*sizes) if sizes else self.model.batch
        return self.batch_divisors[name]

    def build_table(
        self, name: str, model_axes: ModelAxes, batch: int, single_replica: bool, chunks: int = 1
    ) -> FunctionPriceTable | None:
        """Prices for every local batch, interpolated from two small batches.

        Batches of one sample are avoided where possible: dimensions of size 1 walk no loop.
        """
        function, axes = self.functions[name], self.flow.axes[name]
        samples = self.chunker.samples_multiple(function, chunks)
        sizes = [n for n in range(samples, batch, samples) if batch % n == 0][:3]
        sizes = [batch] if single_replica or not sizes else sizes[1:] if len(sizes) > 2 else sizes
        forms = []
        for size in (sizes[0], sizes[-1]):
            strategy = Strategy(((BATCH, batch // size), *model_axes))
            sharding = self.sharding(name, strategy, 1)
            if sharding is None:
                return None
            bound = bind(sharding, function, axes)
            if chunks == 1:
                forms.append((localize(bound), sharding))
                continue
            chunked = self.chunker.chunk(bound, chunks)
            if chunked is None:
                return None
            forms.append((chunked.local, sharding))
        local, sharding = forms[0]
        pricer = Pricer(self.cluster, sharding.mesh, self.loads, self.execution)
        costs = FunctionCostTable(pricer, (local, forms[1][0]), (sizes[0], sizes[-1]))
        partial_gradient_bytes = {
            axis.name: sum(
                local.types[input_.value].bytes
                for input_, layout in zip(local.inputs, sharding.boundary.gradients, strict=True)
                if input_.kind == "parameter" and layout is not None and layout[i] == PARTIAL
            )
            for i, axis in enumerate(sharding.mesh.axes)
            if axis.name not in (BATCH, MICRO) and axis.size > 1
        }
        return FunctionPriceTable(costs, partial_gradient_bytes)

    def micro_batchable(self, name: str) -> bool:
        """Whether a function can run on micro-batches: nothing in it mixes their samples."""
        if name not in self.micro_batchable_functions:
            sharding = self.sharding(name, Strategy(()), 2)
            self.micro_batchable_functions[name] = sharding is not None
            if sharding is not None:
                function, axes = self.functions[name], self.flow.axes[name]
                try:
                    localize(bind(sharding, function, axes))
                except UnreachableLayout:
                    self.micro_batchable_functions[name] = False
        return self.micro_batchable_functions[name]

    def sharding(self, name: str, strategy: Strategy, micro_batches: int) -> Sharding | None:
        """Sharding of a function under a strategy, for micro-batches; None where there is none."""
        function, axes = self.functions[name], self.flow.axes[name]
        searched = self.axis_shardings(strategy.searched_axes)
        if searched is None:
            return None
        per_axis, mesh_axes = [], []
        for role, size in ((MICRO, micro_batches), *strategy.axes):
            role_info = ROLES.get(role)
            if role_info is not None and role_info.stages:
                continue
            mesh_axes.append(Axis(role, size))
            if role in searched[name]:
                per_axis.append(searched[name][role])
            elif role_info is None or role_info.batch:
                experts = role_info is not None and role_info.experts
                per_axis.append(
                    self.expert_shardings[name] if experts else self.batch_shardings[name]
                )
            else:
                per_axis.append(replicated(function))
        mesh = Mesh(tuple(mesh_axes))
        boundary = stack_boundary(per_axis)
        layouts = zip(
            (*(i.value for i in function.inputs), *(o.value for o in function.outputs)),
            (*boundary.inputs, *boundary.outputs),
            strict=True,
        )
        if not all(divides_evenly(axes.factors[v], layout, mesh) for v, layout in layouts):
            return None
        return Sharding(name, strategy, mesh, stack_splits(per_axis), boundary)
