"""Cost tables of every function under its model axes, and the values that partial memory actions save.

The per-device functions of two small batches give the cost for every local batch.
"""

from __future__ import annotations

from itertools import islice
from math import ceil
from typing import NamedTuple

import msgspec

from ...cost_model.execution_model import ExecutionModel
from ...cost_model.operators.function_cost import FunctionCostTable
from ...cost_model.operators.operator_cost import BATCH, OperatorLoad, Pricer
from ...ir.analysis.expert_weights import expert_axis, expert_weights
from ...ir.analysis.row_gradients import has_row_gradient, with_row_types
from ...ir.cached import cached_method
from ...ir.devices.cluster import Cluster
from ...ir.model.layout import PARTIAL
from ...ir.model.mesh import MICRO
from ...ir.model.model import Function
from ...ir.ops.embedding import asks_for_rows
from ...ir.plan.memory_action import MemoryAction, Variant
from ...ir.plan.sharding import Sharding
from ...ir.plan.strategy import Strategy
from ..activations.chunking import Chunker
from ..activations.recompute_ilp import select_saved
from ..question.candidate import CallPoint
from ..question.strategy_space import ModelAxes, each_divisor, inner_batch_degree
from ..sharding.model_shardings import ModelShardings

ROW_NUMBER_BYTES = 8


class FunctionPriceTable(msgspec.Struct, frozen=True):
    """Costs of a function for every local batch, and the local bytes of its gradients to all-reduce
    by axis; of its tables with gradients of rows, and of the rows that the global batch reads; of what a
    slot for a replica of an expert has of its weights; and for each sample of a rank, of what is asked
    for until backward.
    """

    costs: FunctionCostTable
    partial_gradient_bytes: dict[str, int]
    sparse_bytes: int = 0
    row_bytes: int = 0
    slot_bytes: int = 0
    request_bytes: int = 0


class TableKey(NamedTuple):
    """What a table is for; a single replica is priced by itself."""

    function: str
    model_axes: ModelAxes
    single_replica: bool
    chunks: int


class FunctionTables:
    """Cost tables of the functions of one model, computed on first use.

    `single_replica_apart`: whether a single replica, whose per-device function has fewer operators,
    has tables of its own; without them every number of samples is one of many replicas.
    """

    def __init__(
        self,
        shardings: ModelShardings,
        execution: ExecutionModel,
        single_replica_apart: bool = True,
    ) -> None:
        self.shardings, self.execution = shardings, execution
        self.single_replica_apart = single_replica_apart
        self.model, self.cluster = shardings.model, shardings.cluster
        self.chunker = Chunker(shardings.flow, shardings.values.loss_values)
        self.loads: dict[tuple[object, ...], OperatorLoad] = {}
        self.chosen_by: FunctionTables | None = None

    def on(self, cluster: Cluster) -> FunctionTables:
        """The tables on another cluster, of the same shardings and selected values."""
        tables = FunctionTables(self.shardings, self.execution, self.single_replica_apart)
        tables.cluster, tables.chosen_by = cluster, self
        return tables

    def replicas(self, point: CallPoint) -> int:
        """Replicas of a function at a point, without those that model axes make."""
        return self.model.batch // (point.samples * inner_batch_degree(point.model_axes))

    def table(self, name: str, point: CallPoint, chunks: int = 1) -> FunctionPriceTable | None:
        """Costs of a function, or of one of its chunks; None where it cannot be sharded so."""
        return self.table_of(self.key(name, point, chunks))

    def key(self, name: str, point: CallPoint, chunks: int = 1) -> TableKey:
        """Key of the table for a point."""
        single = self.single_replica_apart and (
            point.samples * inner_batch_degree(point.model_axes) == self.model.batch
        )
        return TableKey(name, point.model_axes, single, chunks)

    @cached_method
    def table_of(self, key: TableKey) -> FunctionPriceTable | None:
        """The table of a key.

        Batches of one sample are avoided where possible: dimensions of size 1 walk no loop.
        """
        batch = self.model.batch // inner_batch_degree(key.model_axes)
        samples = self.chunker.samples_multiple(self.shardings.functions[key.function], key.chunks)
        parts = each_divisor(batch // samples) if batch % samples == 0 else ()
        sizes = [samples * n for n in islice(parts, 3) if samples * n < batch]
        if key.single_replica or not sizes:
            sizes = [batch]
        elif len(sizes) > 2:
            sizes = sizes[1:]
        locals_: list[Function] = []
        shardings: list[Sharding] = []
        for size in (sizes[0], sizes[-1]):
            strategy = Strategy(((BATCH, batch // size), *key.model_axes))
            sharding = self.shardings.sharding(key.function, strategy, 1)
            local = None if sharding is None else self.local_function(sharding, key.chunks)
            if sharding is None or local is None:
                return None
            locals_.append(local)
            shardings.append(sharding)
        execution = self.execution_of(key.function)
        loads = self.loads if execution is self.execution else None
        pricer = Pricer(self.cluster, shardings[0].mesh, loads, execution)
        costs = FunctionCostTable(pricer, (locals_[0], locals_[1]), (sizes[0], sizes[-1]))
        partial = partial_gradient_bytes(locals_[0], shardings[0])
        whole = self.shardings.functions[key.function]
        tables, rows = sparse_gradient_bytes(locals_[0], whole)
        slot = expert_bytes(locals_[0], whole, shardings[0])
        rows = rows * self.model.batch // sizes[0]
        asked = ceil(request_bytes(locals_[0]) / sizes[0])
        return FunctionPriceTable(costs, partial, tables, rows, slot, asked)

    def execution_of(self, function: str) -> ExecutionModel:
        """How a function is executed."""
        return self.execution

    def local_function(self, sharding: Sharding, chunks: int) -> Function | None:
        """The per-device function of one of `chunks` chunks; None where that is impossible."""
        whole = self.shardings.functions[sharding.function]
        if chunks == 1:
            return with_row_types(self.shardings.local_function(sharding), whole)
        chunked = self.chunker.chunk(self.shardings.bind(sharding), chunks)
        return None if chunked is None else with_row_types(chunked.local, whole)

    def variant(self, name: str, point: CallPoint) -> Variant:
        """The values that forward saves for backward; numbered as in the table's function."""
        if not point.memory.partial:
            return point.memory.variant(())
        return self.selected(self.key(name, point), point.memory)

    @cached_method
    def selected(self, key: TableKey, memory: MemoryAction) -> tuple[int, ...]:
        """The values to save under a partial memory action."""
        if self.chosen_by is not None:
            return self.chosen_by.selected(key, memory)
        table = self.table_of(key)
        assert table is not None
        return select_saved(table.costs, memory.saved_fraction)

    def saved_values(self, sharding: Sharding, point: CallPoint) -> tuple[int, ...]:
        """Values to save in the per-device function that is generated.

        Those that were priced, if both functions have the same operators; else selected anew.
        """
        if not point.memory.partial:
            return ()
        key, local = self.key(sharding.function, point), self.shardings.local_function(sharding)
        table = self.table_of(key)
        assert table is not None
        priced = table.costs.local_functions[0]
        if [op.target for op in local.ops] == [op.target for op in priced.ops]:
            return self.selected(key, point.memory)
        pricer = Pricer(self.cluster, sharding.mesh, self.loads, self.execution)
        costs = FunctionCostTable(pricer, (local, local), (point.samples, point.samples))
        return select_saved(costs, point.memory.saved_fraction)


def partial_gradient_bytes(local: Function, sharding: Sharding) -> dict[str, int]:
    """Bytes of a per-device function's gradients to all-reduce, by axis inside a replica."""
    return {
        axis.name: sum(
            local.types[input_.value].bytes
            for input_, layout in zip(local.inputs, sharding.boundary.gradients, strict=True)
            if input_.kind == "parameter" and layout is not None and layout[i] == PARTIAL
            if not has_row_gradient(local, input_)
        )
        for i, axis in enumerate(sharding.mesh.axes)
        if axis.name not in (BATCH, MICRO) and axis.size > 1
    }


def expert_bytes(local: Function, whole: Function, sharding: Sharding) -> int:
    """Bytes that one expert has on a rank, of the weights of which ranks have different experts."""
    weights = expert_weights(whole)
    return sum(
        local.types[mine.value].bytes // local.types[mine.value].shape[0]
        for mine, item, layout in zip(
            local.inputs, whole.inputs, sharding.boundary.inputs, strict=True
        )
        if item.value in weights and expert_axis(layout, sharding.mesh) is not None
    )


def request_bytes(local: Function) -> int:
    """Bytes of what a per-device function asks other ranks for and is asked for, between forward and
    backward: two numbers for every look-up, as if none were asked for twice."""
    looked_up = (op.operands()[1] for op in local.ops if asks_for_rows(op))
    return sum(2 * ROW_NUMBER_BYTES * local.types[value].elements for value in looked_up)


def sparse_gradient_bytes(local: Function, whole: Function) -> tuple[int, int]:
    """Bytes of a per-device function's tables with gradients of rows, and of those rows with their
    numbers."""
    tables = rows = 0
    for mine, item in zip(local.inputs, whole.inputs, strict=True):
        if mine.gradient is not None and has_row_gradient(whole, item):
            gradient = local.types[mine.gradient]
            tables += local.types[mine.value].bytes
            rows += gradient.bytes + gradient.shape[0] * ROW_NUMBER_BYTES
    return tables, rows
