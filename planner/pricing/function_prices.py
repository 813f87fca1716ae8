"""Prices of every function under all model axes, local batches and memory actions.

Functions are priced, not layers: equal layers of a model are calls of one function.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

from msgspec.structs import replace

from ...cost_model.execution_model import GENERATED, ExecutionModel
from ...cost_model.memory.offload import chunked_cost, offloaded_cost, repeated
from ...cost_model.operators.function_cost import FunctionCost
from ...ir.cached import cached_method
from ...ir.devices.cluster import Cluster
from ...ir.model.model import Model
from ...ir.plan.memory_action import MemoryAction
from ...ir.plan.sharding import Chunking, Sharding
from ...ir.plan.strategy import Strategy
from ...ir.plan.workload import CallWork
from ..compression.activations import ActivationCompressor
from ..question.candidate import CallPoint
from ..question.strategy_space import inner_batch_degree
from ..sharding.model_shardings import ModelShardings
from ..sharding.model_values import ModelValues
from .activation_reductions import ActivationReductions
from .function_tables import FunctionPriceTable, FunctionTables


class CallPrice(NamedTuple):
    """Price of one call, and local bytes of its gradients to all-reduce, by axis; of its tables with
    gradients of rows, and of the rows that the global batch reads; of its replicas of experts."""

    cost: FunctionCost
    partial_gradient_bytes: dict[str, int]
    sparse_bytes: int = 0
    row_bytes: int = 0
    replica_bytes: int = 0


class HalvesWork(NamedTuple):
    """Kernels and communication of the two halves of a call."""

    forward: CallWork
    backward: CallWork


class FunctionPrices:
    """Prices of a model's functions on a cluster, computed on first use."""

    def __init__(
        self,
        model: Model,
        cluster: Cluster,
        execution: ExecutionModel = GENERATED,
        activations: ActivationCompressor | None = None,
        tables: FunctionTables | None = None,
        values: ModelValues | None = None,
    ) -> None:
        self.model, self.cluster, self.execution = model, cluster, execution
        self.values = tables.shardings.values if tables else values or ModelValues(model)
        self.functions, self.flow = self.values.functions, self.values.flow
        self.shardings = tables.shardings if tables else self.make_shardings()
        self.tables = tables or self.make_tables()
        self.activations = activations or ActivationCompressor()
        self.reductions = ActivationReductions(self.tables, self.activations)

    def on(self, cluster: Cluster) -> FunctionPrices:
        """The same shardings priced on another cluster; the prices themselves where it has more or
        fewer groups at its outermost level alone, since layers cost there what they did."""
        if self.inside_is_equal(cluster):
            prices = copy(self)
            prices.cluster = cluster
            return prices
        tables = self.tables.on(cluster)
        return FunctionPrices(self.model, cluster, self.execution, self.activations, tables)

    def inside_is_equal(self, cluster: Cluster) -> bool:
        """Whether a cluster differs in the number of groups at its outermost level alone."""
        (first, *inner), (other_first, *other_inner) = self.cluster.levels, cluster.levels
        same = (self.cluster.device, inner) == (cluster.device, other_inner) and bool(inner)
        return same and replace(first, size=other_first.size) == other_first

    def make_shardings(self) -> ModelShardings:
        """Shardings of all functions, under the rules of plans."""
        return ModelShardings(self.values, self.cluster, self.execution)

    def make_tables(self) -> FunctionTables:
        """Cost tables of all functions."""
        return FunctionTables(self.shardings, self.execution)

    def sharding(self, name: str, strategy: Strategy, micro_batches: int) -> Sharding | None:
        """Sharding of a function under a strategy, for micro-batches; None where there is none."""
        return self.shardings.sharding(name, strategy, micro_batches)

    def table(self, name: str, point: CallPoint, chunks: int = 1) -> FunctionPriceTable | None:
        """Costs of a function, or of one of its chunks; None where it cannot be sharded so."""
        return self.tables.table(name, point, chunks)

    @cached_method
    def call_price(self, name: str, point: CallPoint) -> CallPrice | None:
        """Price of one call, or None where the function cannot be sharded or chunked so."""
        inner_degree, chunks = inner_batch_degree(point.model_axes), point.memory.chunks
        if point.splits_backward and chunks == 1:
            return self.price_in_parts(name, point)
        replicas, remainder = divmod(self.model.batch, point.samples * inner_degree)
        multiple = self.tables.chunker.samples_multiple(self.functions[name], chunks)
        if (
            remainder
            or self.values.batch_divisor(name) % (replicas * inner_degree)
            or point.samples % multiple
        ):
            return None
        table = self.table(name, point)
        if table is None:
            return None
        reductions = self.reductions.choose(point.model_axes, point.samples)
        variant = self.tables.variant(name, point)
        cost = table.costs.at(point.samples, variant, replicas, reductions)
        if point.memory.on_host:
            cost = offloaded_cost(cost, self.cluster.device)
        if chunks > 1:
            chunk_table = self.table(name, point, chunks)
            if chunk_table is None:
                return None
            cost = chunked_cost(
                chunk_table.costs, table.costs, cost, point.samples, chunks, replicas, reductions
            )
        if table.request_bytes:
            waiting = cost.saved_bytes + table.request_bytes * point.samples
            cost = replace(cost, saved_bytes=waiting)
        replica_bytes = self.execution.routing.spare_slots * table.slot_bytes
        return CallPrice(
            cost, table.partial_gradient_bytes, table.sparse_bytes, table.row_bytes, replica_bytes
        )

    def price_in_parts(self, name: str, point: CallPoint) -> CallPrice | None:
        """Price of one call whose backward runs in two parts."""
        price = self.call_price(name, point._replace(splits_backward=False))
        table = self.table(name, point)
        if price is None or table is None:
            return None
        variant, replicas = self.tables.variant(name, point), self.tables.replicas(point)
        reductions = self.reductions.choose(point.model_axes, point.samples)
        cost = table.costs.in_parts(price.cost, point.samples, variant, replicas, reductions)
        return price._replace(cost=cost)

    def workloads(self, name: str, point: CallPoint) -> HalvesWork:
        """Kernels and communication of forward and of backward of one call that has a price."""
        samples, replicas = point.samples, self.tables.replicas(point)
        table = self.table(name, point, point.memory.chunks)
        assert table is not None
        variant, copied_bytes = self.tables.variant(name, point), 0
        if point.memory.on_host:
            copied_bytes = table.costs.at(samples, variant, replicas).all_saved_bytes
        forward, backward = table.costs.amounts(samples, variant, replicas)
        return HalvesWork(
            repeated(forward, point.memory.chunks, copied_bytes),
            repeated(backward, point.memory.chunks, copied_bytes),
        )

    def chunking(self, sharding: Sharding, memory: MemoryAction) -> Chunking:
        """Chunked execution of a function that has a price for it."""
        chunked = self.tables.chunker.chunk(self.shardings.bind(sharding), memory.chunks)
        assert chunked is not None
        return chunked.chunking

    def producers(self, sharding: Sharding, values: tuple[int, ...]) -> tuple[str, ...]:
        """Module and operator that produce these values of the per-device function, for people."""
        local, wanted = self.shardings.local_function(sharding), set(values)
        operators = [op for op in local.forward_ops if wanted & set(op.results)]
        return tuple(
            dict.fromkeys(f"{op.scope} {op.target.split('.')[1]}".strip() for op in operators)
        )
