"""Cost of the forward or the backward graph of a function for any number of samples.

Every operator is priced, every live tensor counted. Only the roofline is not linear in the samples;
it is evaluated over all operators at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ...ir.analysis.liveness import BEFORE, lifetimes
from ...ir.lowering.overlap import STARTED
from ...ir.model.loops import Work, site_of
from ...ir.model.model import Op
from ...ir.model.tensor import ITEM_BYTES, TensorType
from ...ir.ops.attention import working_bytes as attention_bytes
from ...ir.ops.loss import working_bytes as loss_bytes
from ...ir.plan.workload import CallWork, Collectives, Kernels
from ..communication.compressed_all_reduce import CompressedReductions
from ..communication.overlap import AxisSeconds, beside_operators, exposed_seconds
from ..execution_model import COMPILED
from .fusion import fuse
from .operator_cost import (
    OpCost,
    OperatorLoad,
    collective_copy_bytes,
    is_collective,
    sharded_copy_bytes,
)
from .roofline import op_seconds
from .sampled_function import LinearAmounts, SampledFunction

ALL_REDUCE = "comm.all_reduce"
WORKING_BYTES = {  # with the elements of a block on the host and on a device
    "attention": (attention_bytes, 1 << 18, 1 << 25),
    "cross_entropy": (loss_bytes, 1 << 18, 1 << 24),
}
LOSS_BACKWARD = ("plait.cross_entropy_backward.default", "comm.cross_entropy_backward")


class HalfCost(OpCost, frozen=True):
    """Cost of one forward or backward run. `peak_bytes`: live bytes at its peak beyond its inputs
    and the activations saved for backward, which forward leaves and backward frees."""

    peak_bytes: int


class KernelGroup(NamedTuple):
    """Kernels of one kind of work, dtype and measured operator: their flops and bytes."""

    work: Work
    dtype: str
    kind: str
    flops: LinearAmounts
    moved_bytes: LinearAmounts


class SentBytes(NamedTuple):
    """A collective over a mesh axis; `item_bytes` of an element where it may be compressed."""

    kind: str
    axis: str
    item_bytes: int


class SentSeconds(NamedTuple):
    """Collectives of a half: seconds in line with compute and beside it, peak bytes of codecs."""

    in_line_seconds: float
    beside_seconds: float
    codec_bytes: int


class HalfCostTable:
    """Cost of one half over all sample counts.

    `live_out` values stay live to its end, `borrowed` ones belong to callers, and `saved` ones,
    which forward leaves for backward to free, are counted elsewhere."""

    def __init__(
        self,
        function: SampledFunction,
        ops: tuple[tuple[Op, ...], tuple[Op, ...]],
        live_out: set[int],
        borrowed: set[int],
        saved: frozenset[int] | set[int] = frozenset(),
    ) -> None:
        self.pricer = function.pricer
        pairs = [
            (
                function.pricer.load(function.local_functions[0], a),
                function.pricer.load(function.local_functions[1], b),
            )
            for a, b in zip(*ops, strict=True)
        ]
        self.flops = _load_amounts(function, pairs, lambda load: load.flops)
        self.kernel_groups = list(_kernels(function, ops[0], pairs, live_out | borrowed | saved))
        kernels = sum(len(group.flops.intercept) for group in self.kernel_groups)
        dispatched = kernels if self.pricer.execution.compiled else len(ops[0])
        self.stall_seconds = sum(near.stall_seconds for near, _ in pairs)
        self.host_seconds = dispatched * self.pricer.execution.dispatch_seconds
        sends = [
            (near, far, reduced_item_bytes(op, pair[0]))
            for op, pair in zip(ops[0], pairs, strict=True)
            for near, far in zip(pair[0].sends, pair[1].sends, strict=True)
        ]
        self.collectives = [SentBytes(near.kind, near.axis, item) for near, _, item in sends]
        self.sent_bytes = function.interpolate(
            np.array([near.amount for near, *_ in sends], dtype=np.float64),
            np.array([far.amount for _, far, _ in sends], dtype=np.float64),
        )
        self.live_bytes = _live_bytes(function, ops[0], live_out, borrowed, saved)
        self.travelling_bytes = _travelling_bytes(function, ops[0])

    def at(
        self, samples: int, batch_degree: int, reductions: CompressedReductions | None = None
    ) -> HalfCost:
        device = self.pricer.cluster.device
        compute = sum(
            float(op_seconds(work, flops.at(samples), moved.at(samples), dtype, device, kind).sum())
            for work, dtype, kind, flops, moved in self.kernel_groups
        )
        sent = self.communication(samples, batch_degree, reductions)
        travelling = self.travelling_bytes.at(samples).max(initial=0.0)
        peak = self.live_bytes.at(samples).max(initial=0.0) + sent.codec_bytes + travelling
        waiting = self.host_seconds - sent.in_line_seconds - sent.beside_seconds
        if self.pricer.execution.blocks_launches:
            waiting = compute + self.host_seconds
        compute = max(0.0, compute, waiting) + self.stall_seconds
        exposed = sent.in_line_seconds + exposed_seconds(compute, sent.beside_seconds)
        return HalfCost(compute, exposed, float(self.flops.at(samples).sum()), round(peak))

    def communication(
        self, samples: int, batch_degree: int, reductions: CompressedReductions | None
    ) -> SentSeconds:
        """Seconds of all collectives, and the peak bytes of codec buffers."""
        pricer, coding = self.pricer.with_batch_degree(batch_degree), 0
        sends: list[AxisSeconds] = []
        for (kind, axis, item), n in zip(
            self.collectives, self.sent_bytes.at(samples).tolist(), strict=True
        ):
            priced = None
            if reductions is not None:
                key = axis, n, item, pricer.group(axis)
                priced = reductions.price(*key)
                coding = max(coding, reductions.codec_bytes(*key))
            sent = (
                pricer.collective_seconds(kind, float(n), axis)
                if priced is None
                else priced.seconds
            )
            sends.append(AxisSeconds(kind, axis, sent))
        beside = beside_operators(sends, pricer.execution, pricer.cluster)
        return SentSeconds(sum(send.seconds for send in sends) - beside, beside, coding)

    def amounts(self, samples: int, batch_degree: int) -> CallWork:
        kernels: Counter[tuple[Work, str, str, float, float]] = Counter(
            (work, dtype, kind, f, m)
            for work, dtype, kind, flops, moved in self.kernel_groups
            for f, m in zip(flops.at(samples).tolist(), moved.at(samples).tolist(), strict=True)
        )
        sent = Counter(
            (key, n)
            for key, n in zip(self.collectives, self.sent_bytes.at(samples).tolist(), strict=True)
        )
        where = self.pricer.with_batch_degree(batch_degree).group
        return CallWork(
            tuple(
                Kernels(work, dtype, flops, moved, count, kind)
                for (work, dtype, kind, flops, moved), count in kernels.items()
            ),
            tuple(
                Collectives(kind, axis, float(n), *where(axis), count, item)
                for ((kind, axis, item), n), count in sent.items()
                if n
            ),
            launch_seconds=float(self.host_seconds),
            stall_seconds=float(self.stall_seconds),
        )


def reduced_item_bytes(op: Op, load: OperatorLoad) -> int:
    """Bytes per element of a floating-point all-reduce, which may be compressed; 0 for other
    operators."""
    summed = op.target == ALL_REDUCE and TensorType((), load.dtype).is_float
    return ITEM_BYTES[load.dtype] if summed else 0


def _kernels(
    function: SampledFunction,
    ops: tuple[Op, ...],
    pairs: Sequence[tuple[OperatorLoad, OperatorLoad]],
    live_out: set[int],
) -> Iterator[KernelGroup]:
    """Kernels by kind of work, dtype and measured operator."""
    works: list[Work] = [
        "view" if is_collective(op) else near.work for op, (near, _) in zip(ops, pairs, strict=True)
    ]
    groups: dict[tuple[Work, str, str], list[tuple[OperatorLoad, OperatorLoad]]] = {}
    fused = function.pricer.execution.fused
    for work, pair in zip(works, pairs, strict=True):
        if work != "view" and work not in fused:
            rule = pair[0].rule
            groups.setdefault((work, rule.dtype, rule.kind), []).append(pair)
    for (work, dtype, kind), loads in groups.items():
        flops = _load_amounts(function, loads, lambda load: load.flops * load.rule.waiting)
        moved = _load_amounts(function, loads, lambda load: load.moved_bytes)
        yield KernelGroup(work, dtype, kind, flops, moved)
        many = [pair for pair in loads if pair[0].streamed_bytes]
        if many:
            between = _load_amounts(function, many, lambda load: load.streamed_bytes)
            yield KernelGroup("pointwise", dtype, "", between.zeros(), between)
        traffic = loads[0][0].rule.cast_traffic
        if traffic:
            casts = LinearAmounts(traffic * moved.intercept, traffic * moved.slope)
            yield KernelGroup("pointwise", dtype, "", casts.zeros(), casts)
    if fused:
        kernels = fuse(ops, works, function.roots, {function.roots[v] for v in live_out}, fused)
        bytes_of = [[t.bytes for t in local.types] for local in function.local_functions]
        near, far = (
            np.array([sum(b[v] for v in k.moved_values) for k in kernels], dtype=np.float64)
            for b in bytes_of
        )
        streamed = function.interpolate(near, far)
        yield KernelGroup("pointwise", "float32", "", streamed.zeros(), streamed)


def _load_amounts(
    function: SampledFunction,
    pairs: Sequence[tuple[OperatorLoad, OperatorLoad]],
    amount: Callable[[OperatorLoad], float],
) -> LinearAmounts:
    near, far = (np.array([amount(p[i]) for p in pairs], dtype=np.float64) for i in (0, 1))
    return function.interpolate(near, far)


def _live_bytes(
    function: SampledFunction,
    ops: tuple[Op, ...],
    live_out: set[int],
    borrowed: set[int],
    saved: frozenset[int] | set[int],
) -> LinearAmounts:
    """Live bytes beyond `borrowed` and `saved` while each operator runs; `saved` go at last use."""
    roots = function.roots
    keep = {roots[v] for v in live_out} | borrowed
    lives = {
        value: life
        for value, life in lifetimes(ops, roots).items()
        if value not in borrowed and (life.born != BEFORE or value in saved)
    }
    values = list(lives)
    sizes = function.bytes_of(values)
    change = np.zeros((2, len(ops) + 1))
    beside = [*_loss_copies(function, ops), *_working_bytes(function, ops)]
    if not function.pricer.execution.contiguous_buffers:
        beside += _collective_copies(function, ops)
    for row, amounts in enumerate((sizes.intercept, sizes.slope)):
        np.add.at(change[row], [max(life.born, 0) for life in lives.values()], amounts)
        dead = [(i, v) for i, v in enumerate(values) if v not in keep]
        ends = [
            lives[v].last + (not _overwritten(function, ops[lives[v].last], v)) for _, v in dead
        ]
        np.add.at(change[row], ends, -amounts[[i for i, _ in dead]])
        for at, copies in beside:
            change[row][at] += copies[row]
            change[row][at + 1] -= copies[row]
        change[row][0] -= sum(amounts[i] for i, v in enumerate(values) if v in saved)
    start, slope = np.cumsum(change, axis=1)[:, :-1]
    return LinearAmounts(start, slope)


def _loss_copies(
    function: SampledFunction, ops: tuple[Op, ...]
) -> Iterator[tuple[int, tuple[float, float]]]:
    """Positions of a loss's backward, with the bytes of the fp32 tensors of the logits' size that the
    framework makes there beside the result (intercept, slope)."""
    copies = function.pricer.execution.loss_copies
    for at, op in enumerate(ops):
        if copies and op.target in LOSS_BACKWARD:
            item_bytes = ITEM_BYTES["float32"] * (copies + bool(op.kwargs.get("over")))
            near, far = (
                float(item_bytes * local.types[op.results[0]].elements)
                for local in function.local_functions
            )
            line = function.interpolate(np.array([near]), np.array([far]))
            yield at, (float(line.intercept[0]), float(line.slope[0]))


def _working_bytes(
    function: SampledFunction, ops: tuple[Op, ...]
) -> Iterator[tuple[int, tuple[float, float]]]:
    """Positions of own operators that work in blocks, with the bytes of these (intercept, slope)."""
    on_device = function.pricer.cluster.device.host_copies_hide
    for at, op in enumerate(ops):
        for target, (working_bytes, *elements) in WORKING_BYTES.items():
            if op.target.startswith(f"plait.{target}"):
                line = function.linear(
                    lambda local, op=op, of=working_bytes, most=elements[on_device]: [
                        of(site_of(op, local.types), most)
                    ]
                )
                yield at, (float(line.intercept[0]), float(line.slope[0]))


def _travelling_bytes(function: SampledFunction, ops: tuple[Op, ...]) -> LinearAmounts:
    """Bytes of what collectives of generated programs keep while they run beside operators: what each
    sends and what arrives."""
    starts = [op for op in ops if op.target.removeprefix("comm.") in STARTED]
    if not function.pricer.execution.exposes_ends:
        starts = []
    values = [[v for v in (*op.operands(), *op.results) if v >= 0] for op in starts]
    return function.linear(lambda local: [sum(local.types[v].bytes for v in row) for row in values])


def _collective_copies(
    function: SampledFunction, ops: tuple[Op, ...]
) -> Iterator[tuple[int, tuple[float, float]]]:
    """Positions of operators that communicate, with the bytes of the copies they need (intercept,
    slope)."""
    for at, op in enumerate(ops):
        if op.target.startswith("comm."):
            copies = collective_copy_bytes if is_collective(op) else sharded_copy_bytes
            sizes = function.linear(
                lambda local, op=op, copies=copies: [copies(site_of(op, local.types))]
            )
            yield at, (float(sizes.intercept[0]), float(sizes.slope[0]))


def _overwritten(function: SampledFunction, op: Op, value: int) -> bool:
    """Whether a kernel reuses the memory of an operand that dies there."""
    if not function.pricer.execution.rematerialised or function.work(op) not in COMPILED:
        return False
    types, operands = function.local_functions[0].types, {function.roots[v] for v in op.operands()}
    return value in operands and any(
        types[value].bytes == types[r].bytes for r in op.results if r >= 0
    )
