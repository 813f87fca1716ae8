"""Seconds and bytes of a function for any number of samples: every operator priced, every live
tensor counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace

from ...ir.analysis.liveness import produced_values
from ...ir.lowering.forward_backward import partition
from ...ir.lowering.split_backward import split_backward
from ...ir.model.model import Function, GraphHalves, Op
from ...ir.model.tensor import ITEM_BYTES
from ...ir.plan.memory_action import Variant
from ...ir.plan.workload import CallWork
from ..communication.compressed_all_reduce import CompressedReductions
from ..execution_model import COMPILED
from .half_cost import HalfCost, HalfCostTable
from .operator_cost import Pricer
from .sampled_function import Floats, LinearAmounts, SampledFunction

T = TypeVar("T")
ALL_GATHER = "comm.all_gather"
PACKED_BYTES = 0.5  # of an element of 4 bits, two of which are one of torch's


class BoundaryBytes(NamedTuple, Generic[T]):
    """Bytes of a call's arguments, of their gradients (0: none) and of its results."""

    arguments: T
    gradients: T
    results: T


class SavedLines(NamedTuple):
    """Bytes of saved inner values, of saved arguments and of saved results (0: not saved)."""

    inside: LinearAmounts
    arguments: LinearAmounts
    results: LinearAmounts


class HalvesCostTable(NamedTuple):
    """Cost of both halves under one variant, and what forward saves for backward."""

    forward: HalfCostTable
    backward: HalfCostTable
    saved: SavedLines


class PartsCostTable(NamedTuple):
    """Costs of the two parts of backward, bytes of what the second finds saved, and whether it reads
    weights."""

    inputs: HalfCostTable
    weights: HalfCostTable
    saved: LinearAmounts
    weights_read: bool


class PartsCost(msgspec.Struct, frozen=True):
    """Backward of one call in two parts: seconds of the one for weights, `saved_bytes` that are there
    between the parts, peak bytes of both beyond what is saved, and whether the second reads weights."""

    weights_seconds: float
    saved_bytes: int
    inputs_peak_bytes: int
    weights_peak_bytes: int
    weights_read: bool


class FunctionCost(msgspec.Struct, frozen=True):
    """Forward and backward of one call on one device for one micro-batch under one variant.

    `saved_bytes`: values made inside that forward saves for backward. Values that other calls may
    hold too are counted apart: `saved_arguments`, `saved_results`, bytes of each (0: not saved).
    `host_bytes`: saved bytes in host memory. `boundary_bytes`: bytes of the arguments, of their
    gradients (0: none) and of the results. `largest_state_tensor_bytes`: of parameters and buffers.
    `parts`: of backward, where it runs in two.
    """

    forward: HalfCost
    backward: HalfCost
    saved_bytes: int
    saved_arguments: tuple[int, ...]
    saved_results: tuple[int, ...]
    state_tensor_bytes: int
    boundary_bytes: BoundaryBytes[tuple[int, ...]]
    largest_state_tensor_bytes: int
    host_bytes: int = 0
    parts: PartsCost | None = None

    @property
    def all_saved_bytes(self) -> int:
        """All bytes saved on the device for backward, shared with other calls or not."""
        return self.saved_bytes + sum(self.saved_arguments) + sum(self.saved_results)


class FunctionCostTable(SampledFunction):
    """Costs of one per-device function under every variant."""

    def __init__(
        self, pricer: Pricer, locals_: tuple[Function, Function], samples: tuple[int, int]
    ) -> None:
        super().__init__(pricer, locals_, samples)
        self.halves_by_variant: dict[Variant, HalvesCostTable] = {}
        self.parts_by_variant: dict[Variant, PartsCostTable] = {}
        sizes = [locals_[0].types[i.value].bytes for i in locals_[0].state_inputs()]
        self.state_tensor_bytes, self.largest_state_tensor_bytes = sum(sizes), max(sizes, default=0)
        self.boundary_lines = self.boundary_bytes()

    def at(
        self,
        samples: int,
        variant: Variant,
        batch_degree: int,
        reductions: CompressedReductions | None = None,
    ) -> FunctionCost:
        """Cost of one call on `samples` per device under `batch_degree` replicas; `reductions`
        names the compressed all-reduces."""
        forward, backward, saved = self.halves(variant)

        def sizes(line: LinearAmounts) -> tuple[int, ...]:
            return tuple(line.at(samples).astype(np.int64).tolist())

        return FunctionCost(
            forward.at(samples, batch_degree, reductions),
            backward.at(samples, batch_degree, reductions),
            sum(sizes(saved.inside)),
            sizes(saved.arguments),
            sizes(saved.results),
            self.state_tensor_bytes,
            BoundaryBytes(*map(sizes, self.boundary_lines)),
            self.largest_state_tensor_bytes,
        )

    def amounts(
        self, samples: int, variant: Variant, batch_degree: int
    ) -> tuple[CallWork, CallWork]:
        """Kernels and collectives of forward and backward of one call."""
        forward, backward, _ = self.halves(variant)
        return forward.amounts(samples, batch_degree), backward.amounts(samples, batch_degree)

    def halves(self, variant: Variant) -> HalvesCostTable:
        """Forward, backward and saved bytes under a variant (cached)."""
        if variant not in self.halves_by_variant:
            self.halves_by_variant[variant] = self.partition(variant)
        return self.halves_by_variant[variant]

    def in_parts(
        self,
        cost: FunctionCost,
        samples: int,
        variant: Variant,
        batch_degree: int,
        reductions: CompressedReductions | None = None,
    ) -> FunctionCost:
        """The cost of a call whose backward runs in two parts."""
        if variant not in self.parts_by_variant:
            self.parts_by_variant[variant] = self.parts(variant)
        table = self.parts_by_variant[variant]
        at = samples, batch_degree, reductions
        whole, inputs, weights = (
            half.at(*at) for half in (self.halves(variant).backward, table.inputs, table.weights)
        )
        fetched = cost.backward.peak_bytes - whole.peak_bytes  # from host memory
        parts = PartsCost(
            min(weights.seconds, cost.backward.seconds),
            int(table.saved.at(samples).sum()),
            inputs.peak_bytes + fetched,
            weights.peak_bytes,
            table.weights_read,
        )
        return replace(cost, parts=parts)

    def parts(self, variant: Variant) -> PartsCostTable:
        """Costs of the two parts of backward under a variant."""
        halves = [partition(local, variant) for local in self.local_functions]
        small, large = (
            split_backward(local, of_local)
            for local, of_local in zip(self.local_functions, halves, strict=True)
        )
        local = self.local_functions[0]
        states = {i.value for i in local.state_inputs()}
        parted = {self.roots[v] for v in small.saved} - states
        saved, shared = self.saved_and_shared(halves[0], states)
        activations = {i.gradient for i in local.activations() if i.gradient is not None}
        return PartsCostTable(
            HalfCostTable(
                self,
                (small.inputs, large.inputs),
                activations | parted | states,
                states | shared,
                saved - shared,
            ),
            HalfCostTable(
                self,
                (small.weights, large.weights),
                {i.gradient for i in local.inputs if i.gradient is not None} | states,
                states,
                set(small.saved),
            ),
            self.bytes_of(sorted(parted)),
            small.reads_states(local),
        )

    def saved_and_shared(self, halves: GraphHalves, states: set[int]) -> tuple[set[int], set[int]]:
        """Values saved for backward, and those of them that callers may hold too; a compiled program
        frees these itself."""
        saved = {self.roots[v] for v in halves.saved}
        if self.pricer.execution.rematerialised:
            return self.worth_saving(halves, saved | states) - states, set()
        return saved, saved - produced_values(self.local_functions[0].forward_ops)

    def partition(self, variant: Variant) -> HalvesCostTable:
        """Cost of both halves of the joint graph as a variant partitions it."""
        small, large = (self.partitioned(local, variant) for local in self.local_functions)
        local = self.local_functions[0]
        state_values = {i.value for i in local.state_inputs()}
        saved, shared = self.saved_and_shared(small, state_values)
        outputs = {o.value for o in local.outputs}
        gradients = {i.gradient for i in local.inputs if i.gradient is not None}
        return HalvesCostTable(
            HalfCostTable(
                self,
                (small.forward, large.forward),
                outputs | saved | state_values,
                state_values,
                saved,
            ),
            HalfCostTable(
                self,
                (small.backward, large.backward),
                gradients | state_values,
                state_values | shared,
                saved - shared,
            ),
            self.saved_lines(saved, self.saved_by_kernels(small, large), small.backward),
        )

    def partitioned(self, local: Function, variant: Variant) -> GraphHalves:
        """Both halves of a per-device function. Operators that leave bytes inside for backward run again
        where a variant does not save their results, though nothing reads these."""
        halves = partition(local, variant)
        if variant == "keep" or not self.pricer.execution.saves_dispatched:
            return halves
        saved, backward = set[int]() if variant == "recompute" else set(variant), halves.backward
        for op in halves.forward:
            leaves = self.pricer.load(local, op).saved_bytes and not saved & set(op.results)
            if leaves and op not in backward:
                places = {r: i + 1 for i, other in enumerate(backward) for r in other.results}
                at = max((places.get(v, 0) for v in op.operands()), default=0)
                backward = (*backward[:at], op, *backward[at:])
        return replace(halves, backward=backward)

    def saved_by_kernels(self, small: GraphHalves, large: GraphHalves) -> LinearAmounts:
        """Bytes that operators of forward leave for those of backward beside their results, unless
        backward runs them again."""

        def amounts(local: Function, halves: GraphHalves) -> Floats:
            again = {op.results for op in halves.backward}
            ops = [op for op in halves.forward if op.results not in again]
            return np.array([self.pricer.load(local, op).saved_bytes for op in ops], np.float64)

        near, far = map(amounts, self.local_functions, (small, large))
        return self.interpolate(near, far)

    def boundary_bytes(self) -> BoundaryBytes[LinearAmounts]:
        """Bytes of the arguments, of their gradients (0: none) and of the results."""
        local = self.local_functions[0]
        arguments = local.activations()
        gradients = [-1 if i.gradient is None else i.gradient for i in arguments]
        return BoundaryBytes(
            self.bytes_of([i.value for i in arguments]),
            self.bytes_of(gradients),
            self.bytes_of([o.value for o in local.outputs]),
        )

    def saved_lines(
        self, saved: set[int], by_kernels: LinearAmounts, backward: Sequence[Op]
    ) -> SavedLines:
        """Bytes of what forward saves for `backward`."""
        local = self.local_functions[0]
        arguments = [i.value for i in local.activations()]
        results = [self.roots[o.value] for o in local.outputs]
        inside = sorted(saved & produced_values(local.forward_ops) - set(results))
        ends = [[v if v in saved else -1 for v in values] for values in (arguments, results)]
        ends[1] = [-1 if v in arguments or v in ends[1][:i] else v for i, v in enumerate(ends[1])]
        values, shares = self.bytes_of(inside), self.quantised_shares(inside, backward)
        values = LinearAmounts(shares * values.intercept, shares * values.slope)
        inner = LinearAmounts(
            np.append(values.intercept, by_kernels.intercept),
            np.append(values.slope, by_kernels.slope),
        )
        return SavedLines(inner, self.bytes_of(ends[0]), self.bytes_of(ends[1]))

    def worth_saving(self, halves: GraphHalves, saved: set[int]) -> set[int]:
        """Saved values that are expensive to recompute: shards in place of what was gathered, since
        backward repeats all-gathers beside its matrix products; and fused kernels recompute values that
        only they read."""
        unfused = [op for op in halves.backward if self.work(op) not in (*COMPILED, "view")]
        products = {self.roots[v] for op in unfused for v in op.operands()}
        worth, keeps = set(saved), self.pricer.execution.keeps_gathered
        for op in halves.forward:
            results = {r for r in op.results if r >= 0}
            sources = {self.roots[v] for v in op.operands()}
            fused = self.work(op) in COMPILED and not results & products
            if op.target == ALL_GATHER and results & saved and not keeps:
                worth = worth - results | sources
            elif sources <= saved and fused:
                worth -= results
        return worth

    def quantised_shares(self, values: Sequence[int], backward: Sequence[Op]) -> Floats:
        """Bytes that saved values take, over those of their type: what products alone read is saved as
        they read it, and what others read too is saved twice."""
        execution, types = self.pricer.execution, self.local_functions[0].types
        shares = np.ones(len(values))
        if execution.matrix_dtype is None or not execution.saves_quantised:
            return shares
        works = self.backward_readers(backward)
        for i, value in enumerate(values):
            if "gemm" in works[value]:
                part = ITEM_BYTES.get(execution.matrix_dtype, PACKED_BYTES)
                part /= ITEM_BYTES[types[value].dtype]
                shares[i] = part + (len(works[value]) > 1)
        return shares

    def backward_readers(self, backward: Sequence[Op]) -> defaultdict[int, set[str]]:
        """The kinds of work that read a value in backward, as it is or gathered."""
        works = defaultdict[int, set[str]](set)
        for op in backward:
            for value in op.operands():
                works[self.roots[value]] |= {self.work(op)} - {"view", "move"}
        for op in (*backward, *self.local_functions[0].forward_ops):
            if op.target == ALL_GATHER:
                (source, *_) = op.operands()
                works[self.roots[source]] |= works[self.roots[op.results[0]]]
        return works
