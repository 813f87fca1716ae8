"""Seconds and bytes of a function for any number of samples: every operator priced, every live
tensor counted.

Flops, bytes and tensor sizes grow linearly with the samples per device, so the per-device functions
for two sizes give them for every size. Only the roofline is not linear; it is evaluated over all
operators at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...ir.analysis.liveness import produced_values, storage_roots
from ...ir.loops import Work, site_of
from ...ir.lowering.forward_backward import GraphHalves, partition
from ...ir.model import Function, Op
from ...ir.plan.memory_action import Variant
from ...ir.plan.workload import CallWork, Collectives, Kernels
from ...ir.tensor import ITEM_BYTES, TensorType
from ..communication.compressed_all_reduce import CompressedReductions
from ..execution_model import COMPILED
from .fusion import fuse
from .operator_cost import OpCost, OperatorLoad, Pricer, collective_copy_bytes, is_collective
from .roofline import op_seconds

ALL_GATHER, ALL_REDUCE = "comm.all_gather", "comm.all_reduce"
QUANTISE_TRAFFIC = 0.4  # of a matrix product's traffic, added by quantising its operands (assumed)
Floats = NDArray[np.float64]


class HalfCost(OpCost, frozen=True):
    """Cost of one forward or backward run. `peak_bytes`: live bytes at its peak beyond its inputs
    and the activations saved for backward, which forward leaves and backward frees."""

    peak_bytes: int


class FunctionCost(msgspec.Struct, frozen=True):
    """Forward and backward of one call on one device for one micro-batch under one variant.

    `saved_bytes`: values made inside that forward saves for backward. Values that other calls may
    hold too are counted apart: `saved_arguments`, `saved_results`, bytes of each (0: not saved).
    `host_bytes`: saved bytes in host memory. `boundary_bytes`: bytes of the arguments, of their
    gradients (0: none) and of the results. `largest_state_tensor_bytes`: of parameters and buffers.
    """

    forward: HalfCost
    backward: HalfCost
    saved_bytes: int
    saved_arguments: tuple[int, ...]
    saved_results: tuple[int, ...]
    state_tensor_bytes: int
    boundary_bytes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    largest_state_tensor_bytes: int
    host_bytes: int = 0

    @property
    def all_saved_bytes(self) -> int:
        """All bytes saved on the device for backward, shared with other calls or not."""
        return self.saved_bytes + sum(self.saved_arguments) + sum(self.saved_results)


class LinearAmounts(msgspec.Struct, frozen=True):
    """Amounts linear in the samples: `intercept + slope * samples`, elementwise."""

    intercept: Floats
    slope: Floats

    def at(self, samples: int) -> Floats:
        return self.intercept + self.slope * samples

    def zeros(self) -> LinearAmounts:
        """Zero amounts of the same shape."""
        return LinearAmounts(0.0 * self.intercept, 0.0 * self.slope)


class FunctionCostTable:
    """Costs of one per-device function, given for `samples[0]` and `samples[1]` samples per device.

    Both sizes are the same where only one is possible.
    """

    def __init__(
        self, pricer: Pricer, locals_: tuple[Function, Function], samples: tuple[int, int]
    ):
        self.pricer, self.local_functions, self.samples = pricer, locals_, samples
        local = locals_[0]
        views = (op for op in local.ops if self.work(op) == "view")
        self.roots = storage_roots(len(local.types), views)
        self.halves_by_variant: dict[
            Variant,
            tuple[
                _HalfCostTable, _HalfCostTable, tuple[LinearAmounts, LinearAmounts, LinearAmounts]
            ],
        ] = {}
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
        inside, arguments, results, *ends = (
            tuple(line.at(samples).astype(np.int64).tolist())
            for line in (*saved, *self.boundary_lines)
        )
        return FunctionCost(
            forward.at(samples, batch_degree, reductions),
            backward.at(samples, batch_degree, reductions),
            sum(inside),
            arguments,
            results,
            self.state_tensor_bytes,
            (ends[0], ends[1], ends[2]),
            self.largest_state_tensor_bytes,
        )

    def amounts(
        self, samples: int, variant: Variant, batch_degree: int
    ) -> tuple[CallWork, CallWork]:
        """Kernels and collectives of forward and backward of one call."""
        forward, backward, _ = self.halves(variant)
        return forward.amounts(samples, batch_degree), backward.amounts(samples, batch_degree)

    def halves(
        self, variant: Variant
    ) -> tuple[_HalfCostTable, _HalfCostTable, tuple[LinearAmounts, LinearAmounts, LinearAmounts]]:
        """Forward, backward and saved bytes under a variant (cached)."""
        if variant not in self.halves_by_variant:
            self.halves_by_variant[variant] = self.partition(variant)
        return self.halves_by_variant[variant]

    def partition(
        self, variant: Variant
    ) -> tuple[_HalfCostTable, _HalfCostTable, tuple[LinearAmounts, LinearAmounts, LinearAmounts]]:
        small, large = (partition(local, variant) for local in self.local_functions)
        local = self.local_functions[0]
        state_values = {i.value for i in local.state_inputs()}
        saved = {self.roots[v] for v in small.saved}
        if self.pricer.execution.rematerialised:
            saved = self.worth_saving(small, saved | state_values) - state_values
        outputs = {o.value for o in local.outputs}
        gradients = {i.gradient for i in local.inputs if i.gradient is not None}
        # callers may hold arguments too; a compiled program frees them itself
        shared = (
            set()
            if self.pricer.execution.rematerialised
            else saved - produced_values(local.forward_ops)
        )
        return (
            _HalfCostTable(
                self,
                (small.forward, large.forward),
                outputs | saved | state_values,
                state_values,
                saved,
            ),
            _HalfCostTable(
                self,
                (small.backward, large.backward),
                gradients | state_values,
                state_values | shared,
                saved - shared,
            ),
            self.saved_lines(saved),
        )

    def boundary_bytes(self) -> tuple[LinearAmounts, LinearAmounts, LinearAmounts]:
        """Bytes of the arguments, of their gradients (0: none) and of the results."""
        local = self.local_functions[0]
        arguments = local.activations()
        gradients = [-1 if i.gradient is None else i.gradient for i in arguments]
        values = [i.value for i in arguments], gradients, [o.value for o in local.outputs]
        return self.bytes_of(values[0]), self.bytes_of(values[1]), self.bytes_of(values[2])

    def saved_lines(self, saved: set[int]) -> tuple[LinearAmounts, LinearAmounts, LinearAmounts]:
        """Bytes of saved inner values, of saved arguments and of saved results (0: not saved)."""
        local = self.local_functions[0]
        arguments = [i.value for i in local.activations()]
        results = [self.roots[o.value] for o in local.outputs]
        inside = sorted(saved & produced_values(local.forward_ops) - set(results))
        ends = [[v if v in saved else -1 for v in values] for values in (arguments, results)]
        ends[1] = [-1 if v in arguments or v in ends[1][:i] else v for i, v in enumerate(ends[1])]
        return self.bytes_of(inside), self.bytes_of(ends[0]), self.bytes_of(ends[1])

    def worth_saving(self, halves: GraphHalves, saved: set[int]) -> set[int]:
        """Saved values that are expensive to recompute: backward repeats all-gathers beside its
        matrix products, and fused kernels recompute values that only they read."""
        unfused = [op for op in halves.backward if self.work(op) not in (*COMPILED, "view")]
        products = {self.roots[v] for op in unfused for v in op.operands()}
        worth = set(saved)
        for op in halves.forward:
            results = {r for r in op.results if r >= 0}
            sources = {self.roots[v] for v in op.operands()}
            fused = self.work(op) in COMPILED and not results & products
            if sources <= saved and (fused or op.target == ALL_GATHER):
                worth -= results
        return worth

    def linear(self, amounts: Callable[[Function], Sequence[float]]) -> LinearAmounts:
        """Linear interpolation of amounts of the functions of both sizes."""
        near, far = (
            np.array(list(amounts(local)), dtype=np.float64) for local in self.local_functions
        )
        return self.interpolate(near, far)

    def interpolate(self, near: Floats, far: Floats) -> LinearAmounts:
        one, two = self.samples
        slope = (far - near) / (two - one) if two != one else np.zeros_like(near)
        return LinearAmounts(near - slope * one, slope)

    def bytes_of(self, values: Sequence[int]) -> LinearAmounts:
        return self.linear(lambda local: [local.types[v].bytes if v >= 0 else 0 for v in values])

    def work(self, op: Op) -> Work:
        return "move" if is_collective(op) else self.pricer.load(self.local_functions[0], op).work


class _HalfCostTable:
    """Cost of one half over all sample counts.

    `live_out` values stay live to its end, `borrowed` ones belong to callers, and `saved` ones,
    which forward leaves for backward to free, are counted elsewhere."""

    def __init__(
        self,
        table: FunctionCostTable,
        ops: tuple[tuple[Op, ...], tuple[Op, ...]],
        live_out: set[int],
        borrowed: set[int],
        saved: frozenset[int] | set[int] = frozenset(),
    ) -> None:
        self.pricer = table.pricer
        pairs = [
            (
                table.pricer.load(table.local_functions[0], a),
                table.pricer.load(table.local_functions[1], b),
            )
            for a, b in zip(*ops, strict=True)
        ]
        self.flops = _load_amounts(table, pairs, lambda load: load.flops)
        self.kernel_groups = list(_kernels(table, ops[0], pairs, live_out | borrowed | saved))
        kernels = sum(len(flops.intercept) for _, _, _, flops, _ in self.kernel_groups)
        dispatched = kernels if self.pricer.execution.compiled else len(ops[0])
        self.host_seconds = dispatched * self.pricer.execution.dispatch_seconds
        sends = [
            (near, far, reduced_item_bytes(op, pair[0]))
            for op, pair in zip(ops[0], pairs, strict=True)
            for near, far in zip(pair[0].sends, pair[1].sends, strict=True)
        ]
        self.collectives = [(near[0], near[2], item) for near, _, item in sends]
        self.sent_bytes = table.interpolate(
            np.array([near[1] for near, *_ in sends]), np.array([far[1] for _, far, _ in sends])
        )
        self.live_bytes = _live_bytes(table, ops[0], live_out, borrowed, saved)

    def at(
        self, samples: int, batch_degree: int, reductions: CompressedReductions | None = None
    ) -> HalfCost:
        device = self.pricer.cluster.device
        compute = sum(
            float(op_seconds(work, flops.at(samples), moved.at(samples), dtype, device, kind).sum())
            for work, dtype, kind, flops, moved in self.kernel_groups
        )
        communication, coding = self.communication(samples, batch_degree, reductions)
        peak = self.live_bytes.at(samples).max(initial=0.0) + coding
        compute = max(0.0, compute, self.host_seconds - communication)
        return HalfCost(compute, communication, float(self.flops.at(samples).sum()), round(peak))

    def communication(
        self, samples: int, batch_degree: int, reductions: CompressedReductions | None
    ) -> tuple[float, int]:
        """Seconds of all collectives, and the peak bytes of codec buffers."""
        pricer, seconds, coding = self.pricer.with_batch_degree(batch_degree), 0.0, 0
        for (kind, axis, item), n in zip(
            self.collectives, self.sent_bytes.at(samples).tolist(), strict=True
        ):
            priced = None
            if reductions is not None:
                key = axis, n, item, pricer.group(axis)
                priced = reductions.price(*key)
                coding = max(coding, reductions.codec_bytes(*key))
            seconds += (
                pricer.collective_seconds(kind, float(n), axis)
                if priced is None
                else priced.seconds
            )
        return seconds, coding

    def amounts(self, samples: int, batch_degree: int) -> CallWork:
        kernels = Counter(
            (work, dtype, f, m, kind)
            for work, dtype, kind, flops, moved in self.kernel_groups
            for f, m in zip(flops.at(samples).tolist(), moved.at(samples).tolist(), strict=True)
        )
        sent = Counter(
            (*key, n)
            for key, n in zip(self.collectives, self.sent_bytes.at(samples).tolist(), strict=True)
        )
        where = self.pricer.with_batch_degree(batch_degree).group
        return CallWork(
            tuple(Kernels(*key[:4], count, key[4]) for key, count in kernels.items()),
            tuple(
                Collectives(k, a, float(n), *where(a), count, item)
                for (k, a, item, n), count in sent.items()
                if n
            ),
        )


def reduced_item_bytes(op: Op, load: OperatorLoad) -> int:
    """Bytes per element of a floating-point all-reduce, which may be compressed; 0 for other
    operators."""
    summed = op.target == ALL_REDUCE and TensorType((), load.dtype).is_float
    return ITEM_BYTES[load.dtype] if summed else 0


def _kernels(
    table: FunctionCostTable,
    ops: tuple[Op, ...],
    pairs: Sequence[tuple[OperatorLoad, OperatorLoad]],
    live_out: set[int],
) -> Iterator[tuple[Work, str, str, LinearAmounts, LinearAmounts]]:
    """Kernels by kind of work, dtype and measured operator: their flops and bytes."""
    works: list[Work] = [
        "view" if is_collective(op) else near.work for op, (near, _) in zip(ops, pairs, strict=True)
    ]
    groups: dict[tuple[Work, str, str], list[tuple[OperatorLoad, OperatorLoad]]] = {}
    fused = table.pricer.execution.fused
    for work, pair in zip(works, pairs, strict=True):
        if work != "view" and work not in fused:
            groups.setdefault((work, pair[0].dtype, pair[0].kind), []).append(pair)
    for (work, dtype, kind), loads in groups.items():
        flops = _load_amounts(table, loads, lambda load: load.flops)
        moved = _load_amounts(table, loads, lambda load: load.moved_bytes)
        yield work, dtype, kind, flops, moved
        if work == "gemm" and table.pricer.execution.matrix_dtype is not None:
            casts = LinearAmounts(
                QUANTISE_TRAFFIC * moved.intercept, QUANTISE_TRAFFIC * moved.slope
            )
            yield "pointwise", dtype, "", casts.zeros(), casts
    if fused:
        kernels = fuse(ops, works, table.roots, {table.roots[v] for v in live_out}, fused)
        bytes_of = [[t.bytes for t in local.types] for local in table.local_functions]
        near, far = (
            np.array([sum(b[v] for v in k.moved_values) for k in kernels], dtype=np.float64)
            for b in bytes_of
        )
        streamed = table.interpolate(near, far)
        yield "pointwise", "float32", "", streamed.zeros(), streamed


def _load_amounts(
    table: FunctionCostTable,
    pairs: Sequence[tuple[OperatorLoad, OperatorLoad]],
    amount: Callable[[OperatorLoad], float],
) -> LinearAmounts:
    near, far = (np.array([amount(p[i]) for p in pairs], dtype=np.float64) for i in (0, 1))
    return table.interpolate(near, far)


def _live_bytes(
    table: FunctionCostTable,
    ops: tuple[Op, ...],
    live_out: set[int],
    borrowed: set[int],
    saved: frozenset[int] | set[int],
) -> LinearAmounts:
    """Live bytes beyond `borrowed` and `saved` while each operator runs; `saved` go at last use."""
    roots = table.roots
    keep = {roots[v] for v in live_out} | borrowed
    produced = produced_values(ops)
    born: dict[int, int] = dict.fromkeys(sorted(saved - borrowed - produced), 0)
    for at, op in enumerate(ops):
        for r in op.results:
            if r >= 0 and roots[r] == r and r not in borrowed:
                born.setdefault(r, at)
    last = {
        roots[v]: at
        for at, op in enumerate(ops)
        for v in (*op.operands(), *(r for r in op.results if r >= 0))
    }
    values = list(born)
    sizes = table.bytes_of(values)
    change = np.zeros((2, len(ops) + 1))
    beside = (
        [] if table.pricer.execution.contiguous_buffers else list(_collective_copies(table, ops))
    )
    for row, amounts in enumerate((sizes.intercept, sizes.slope)):
        np.add.at(change[row], [born[v] for v in values], amounts)
        dead = [(i, v) for i, v in enumerate(values) if v not in keep and v in last]
        ends = [last[v] + (not _overwritten(table, ops[last[v]], v)) for _, v in dead]
        np.add.at(change[row], ends, -amounts[[i for i, _ in dead]])
        for at, copies in beside:
            change[row][at] += copies[row]
            change[row][at + 1] -= copies[row]
        change[row][0] -= sum(amounts[i] for i, v in enumerate(values) if v in saved)
    start, slope = np.cumsum(change, axis=1)[:, :-1]
    return LinearAmounts(start, slope)


def _collective_copies(
    table: FunctionCostTable, ops: tuple[Op, ...]
) -> Iterator[tuple[int, tuple[float, float]]]:
    """Positions of collectives, with the bytes of the copies they need (intercept, slope)."""
    for at, op in enumerate(ops):
        if is_collective(op):
            sizes = table.linear(
                lambda local, op=op: [collective_copy_bytes(site_of(op, local.types))]
            )  # type: ignore[misc]
            yield at, (float(sizes.intercept[0]), float(sizes.slope[0]))


def _overwritten(table: FunctionCostTable, op: Op, value: int) -> bool:
    """Whether a kernel reuses the memory of an operand that dies there."""
    if not table.pricer.execution.rematerialised or table.work(op) not in COMPILED:
        return False
    types, operands = table.local_functions[0].types, {table.roots[v] for v in op.operands()}
    return value in operands and any(
        types[value].bytes == types[r].bytes for r in op.results if r >= 0
    )
