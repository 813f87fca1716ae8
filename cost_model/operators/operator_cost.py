"""Cost of one operator of a per-device function: flops, memory traffic and communication.

The per-device function names its collectives, so the priced operators are exactly the generated
ones. `function_cost` adds the loads up over both graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
from msgspec.structs import replace

from ...ir import ops as _declarations  # noqa: F401  # pyright: ignore[reportUnusedImport]
from ...ir.devices.cluster import Cluster, Device
from ...ir.model.loops import Loops, OperatorCollective, Site, Work, declaration, site_of
from ...ir.model.mesh import Mesh
from ...ir.model.model import Function, Model, Op
from ...ir.model.tensor import ITEM_BYTES
from ...ir.plan.strategy import ROLES
from ..communication.collective import CommGroup, collective_seconds
from ..execution_model import GENERATED, ExecutionModel
from .expert_load import expert_load
from .matrix_units import is_aligned
from .part_traffic import part_traffic
from .roofline import Amount, op_seconds, softmax_share

BATCH = "dp"  # the axis of a priced mesh that stands for all data-parallel axes
SCORE_PASSES = 8  # over scores in memory: one of each product, two of mask, softmax and dropout
EXCHANGES = 2  # of tokens with experts and back, in forward and in backward
COLLECTIVES = frozenset(
    {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "cut", "share"}
)


class CollectiveSend(NamedTuple):
    """A collective of `amount` bytes over a mesh axis."""

    kind: str
    amount: float
    axis: str


class OperatorRule(msgspec.Struct, frozen=True):
    """How an operator is priced, whatever its sizes: work, dtype, and its own name where the device
    has a measured curve of it. `looks_up`: it reads no more of a table than it returns.
    `waiting`: flops that the kernel takes the time of, per flop of its products.
    `score_passes`: passes over attention scores in memory. `cast_traffic`: of its own traffic, added
    by quantising its operands."""

    work: Work
    dtype: str
    kind: str = ""
    looks_up: bool = False
    score_passes: int = 0
    cast_traffic: float = 0.0
    waiting: float = 1.0

    def moved_bytes(
        self, operands: Sequence[Amount], results: Sequence[Amount], scores: Amount
    ) -> Amount:
        """Bytes read and written: numbers, or arrays over ways to shard the operator."""
        written = _total(results, scores)
        read = [_smaller(x, written) for x in operands] if self.looks_up else operands
        return written + _total(read, scores) + self.score_passes * scores

    def seconds(self, flops: Amount, moved: Amount, device: Device) -> Amount:
        """Seconds of the operator and of the casts before it."""
        timed = flops * self.waiting
        seconds = op_seconds(self.work, timed, moved, self.dtype, device, self.kind)
        if not self.cast_traffic:
            return seconds
        casts = self.cast_traffic * moved
        return seconds + op_seconds("pointwise", casts * 0.0, casts, self.dtype, device)


def _total(amounts: Sequence[Amount], like: Amount) -> Amount:
    return sum(amounts, start=like * 0)


def _smaller(one: Amount, other: Amount) -> Amount:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return min(one, other)
    return cast(Amount, np.minimum(cast(Any, one), cast(Any, other)))


def operator_rule(
    site: Site, declared: Loops | None, device: Device, execution: ExecutionModel
) -> OperatorRule:
    """How one operator is priced on a device under an execution model."""
    work = declared.work if declared else "move"
    looks_up = declared is not None and work == "move" and not declared.flops
    if work == "move" and is_elementwise(site):
        work = "pointwise"
    dtype = next((t.dtype for t in site.operands if t.is_float), "float32")
    quantised = work == "gemm" and execution.matrix_dtype is not None
    name = measured_name(site.op, declared)
    dtype = execution.matrix_dtype or dtype if quantised else dtype
    dtype = dtype if work != "gemm" or is_aligned(site, dtype) else "float32"
    return OperatorRule(
        work,
        dtype,
        name if device.curve((name,), dtype) else "",
        looks_up,
        SCORE_PASSES if work == "attention" and not execution.fused_attention else 0,
        execution.cast_traffic if quantised else 0.0,
        1.0
        if device.curve((name, work), dtype)
        else attention_waiting(site, declared, device, execution),
    )


def attention_waiting(
    site: Site, declared: Loops | None, device: Device, execution: ExecutionModel
) -> float:
    """Flops that an attention kernel takes the time of, per flop of its products; 1 elsewhere."""
    if declared is None or declared.work != "attention":
        return 1.0
    backward = "backward" in site.op.target
    share = softmax_share(declared.size("d"), declared.size("e"), backward)
    return share * execution.attention_slowdown(device.peak_flops)


class OperatorLoad(msgspec.Struct, frozen=True):
    """Load of one operator on a device: flops, bytes of memory traffic, collectives; `streamed_bytes`:
    what its kernels write and read for one another, apart from their products; `saved_bytes`: what a
    forward operator leaves inside for its backward one; `stall_seconds`: that the device waits."""

    rule: OperatorRule
    flops: float
    moved_bytes: float
    sends: tuple[CollectiveSend, ...] = ()
    streamed_bytes: float = 0.0
    saved_bytes: float = 0.0
    stall_seconds: float = 0.0

    @property
    def work(self) -> Work:
        return self.rule.work

    @property
    def dtype(self) -> str:
        return self.rule.dtype


class OpCost(msgspec.Struct, frozen=True):
    """Cost of one or several operators run once."""

    compute_seconds: float
    communication_seconds: float
    flops: float

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.communication_seconds


class Pricer:
    """Prices operators on one mesh of one cluster; `loads` caches operators by their shapes."""

    def __init__(
        self,
        cluster: Cluster,
        mesh: Mesh,
        loads: dict[tuple[object, ...], OperatorLoad] | None = None,
        execution: ExecutionModel = GENERATED,
    ) -> None:
        self.cluster, self.mesh, self.execution = cluster, mesh, execution
        self.loads = {} if loads is None else loads

    def op(self, local: Function, op: Op) -> OpCost:
        """Cost of one operator on local shards."""
        load = self.load(local, op)
        seconds, device = 0.0, self.cluster.device
        if load.work != "view" and not is_collective(op):
            seconds = float(load.rule.seconds(load.flops, load.moved_bytes, device))
            if load.streamed_bytes:
                seconds += float(
                    op_seconds("pointwise", 0.0, load.streamed_bytes, load.dtype, device)
                )
            seconds += load.stall_seconds
        return OpCost(seconds, sum(self.collective_seconds(*s) for s in load.sends), load.flops)

    def collective_seconds(self, kind: str, amount: float, name: str) -> float:
        return float(collective_seconds(kind, amount, self.group(name), self.cluster))

    def with_batch_degree(self, batch_degree: int) -> Pricer:
        """The same pricer with `batch_degree` data-parallel replicas."""
        axes = tuple(
            replace(a, size=batch_degree) if a.name == BATCH else a for a in self.mesh.axes
        )
        return Pricer(self.cluster, Mesh(axes), self.loads, self.execution)

    def sent_share(self, exchange: OperatorCollective, name: str) -> float:
        """The part of an exchange along an axis that is sent."""
        return sent_share(exchange, self.group(name), self.cluster, self.execution)

    def senders(self, op: Op) -> int:
        """Ranks with the same tokens, of which each sends a part where the framework splits them so."""
        if not self.execution.saves_dispatched:
            return 1
        joined = joined_axes(op)
        axes = (a for a in self.mesh.axes if a.name in ROLES and a.name not in joined)
        return prod(a.size for a in axes if ROLES[a.name].operators)

    def group(self, name: str) -> CommGroup:
        """The rank groups along an axis."""
        axis = self.mesh.index(name)
        return CommGroup(self.mesh.axes[axis].size, self.mesh.stride(axis))

    def load(self, local: Function, op: Op) -> OperatorLoad:
        operands = tuple(local.types[v] for v in op.operands())
        results = tuple(local.types[v] if v >= 0 else None for v in op.results)
        # flops of joined operators depend on the number of joined ranks alone
        joined = tuple(
            (name, self.mesh.axes[self.mesh.index(name)].size) for name in joined_axes(op)
        )
        key = (op.target, op.args, joined, operands, results)
        if key not in self.loads:
            site = Site(op, operands, results)
            self.loads[key] = (
                _collective_load(site) if is_collective(op) else self.operator_load(site)
            )
        return self.loads[key]

    def operator_load(self, site: Site) -> OperatorLoad:
        declared = declaration(site)
        rule = operator_rule(site, declared, self.cluster.device, self.execution)
        ranks = self.paired_ranks(site.op, declared)
        experts = expert_load(site, declared, ranks, self.cluster.device, self.execution)
        moved = part_traffic(site) or rule.moved_bytes(
            [t.bytes for t in site.operands],
            [t.bytes for t in site.results if t is not None],
            score_bytes(site, declared) if rule.score_passes and declared else 0,
        )
        streamed = ranks * streamed_bytes(site, declared) if declared else 0.0
        return OperatorLoad(
            rule,
            ranks * count_flops(declared) * experts.computed,
            moved,
            tuple(self.sends(site, declared, experts.sent)) if declared else (),
            streamed * experts.streamed,
            experts.saved_bytes,
            experts.stall_seconds,
        )

    def paired_ranks(self, op: Op, declared: Loops | None) -> int:
        """Ranks for whose tokens each of them computes."""
        joined = joined_axes(op) if declared is not None and declared.pairs else ()
        return prod(self.mesh.axes[self.mesh.index(name)].size for name in joined)

    def sends(self, site: Site, declared: Loops, share: float) -> Iterator[CollectiveSend]:
        """What an operator sends along the axes whose ranks it joins; `share`: of the fullest rank."""
        for name in joined_axes(site.op):
            for e in declared.exchanges:
                amount = exchanged_bytes(e, declared) * self.sent_share(e, name)
                parted = self.senders(site.op) if e.copies > 1 else 1
                yield CollectiveSend(e.kind, share * amount / parted, name)


def measured_name(op: Op, declared: Loops | None) -> str:
    """The name under which an operator is measured: `mul`, `attention`, `random_attention`."""
    name = op.target.split(".")[1]
    draws = declared is not None and any(loop.name == "key" for loop in declared.loops)
    return f"random_{name}" if draws and declared and declared.work == "attention" else name


def joined_axes(op: Op) -> tuple[str, ...]:
    """The mesh axes whose ranks one operator joins (expert dispatch)."""
    names = op.kwargs.get("over")
    return tuple(str(name) for name in names) if isinstance(names, tuple) else ()


def is_collective(op: Op) -> bool:
    return op.target.startswith("comm.") and op.target[5:] in COLLECTIVES


def _collective_load(site: Site) -> OperatorLoad:
    kind = site.op.target[5:]
    if kind in ("cut", "share"):
        return OperatorLoad(OperatorRule("move", "float32"), 0.0, 0.0)
    tensor = site.operands[0] if kind != "all_gather" else site.results[0]
    assert tensor is not None
    send = CollectiveSend(kind, tensor.bytes, str(site.op.args[1]))
    return OperatorLoad(OperatorRule("move", tensor.dtype), 0.0, 0.0, (send,))


def collective_copy_bytes(site: Site) -> int:
    """Bytes of the copies that a collective makes beside its result: packed shards before sending,
    and reordered ones after. (A reduction may be an all-to-all and local sums.)"""
    (sent, *_), received = site.operands, site.results[0]
    largest = max(sent.bytes, received.bytes if received is not None else 0)
    return {"all_gather": 1, "reduce_scatter": 2, "all_to_all": 2}.get(
        site.op.target[5:], 0
    ) * largest


def sharded_copy_bytes(site: Site) -> int:
    """Bytes of what the form of an operator on shards takes beside its results: `sharded_operators` of
    the runtime. Positions of rows are int64 and flags, some of them at once."""
    copies = SHARDED_COPIES.get(site.op.target.removeprefix("comm."))
    return copies(site) if copies is not None and site.op.target.startswith("comm.") else 0


def _cross_entropy_copies(site: Site) -> int:
    logits, labels = site.operands[:2]
    if not site.op.kwargs.get("over"):
        return 0
    wide = max(ITEM_BYTES[logits.dtype], ITEM_BYTES["float32"])
    casts = 1 + (ITEM_BYTES[logits.dtype] < wide)
    return logits.elements * wide * casts + ROW_POSITION_BYTES * labels.elements


def _embedding_copies(site: Site) -> int:
    return ROW_POSITION_BYTES * site.operands[1].elements


def _embedding_gradient_copies(site: Site) -> int:
    gradient, indices = site.operands[:2]
    return gradient.bytes + ROW_POSITION_BYTES * indices.elements


def _attention_copies(site: Site) -> int:
    result = site.results[0]
    return 3 * result.bytes if site.op.kwargs.get("over") and result is not None else 0


ROW_POSITION_BYTES = 64
SHARDED_COPIES: dict[str, Callable[[Site], int]] = {
    "cross_entropy": _cross_entropy_copies,
    "embedding": _embedding_copies,
    "embedding_dense_backward": _embedding_gradient_copies,
    "embedding_sparse_backward": _embedding_gradient_copies,
    "attention": _attention_copies,
}


def exchanged_bytes(exchange: OperatorCollective, declared: Loops) -> float:
    """Bytes of one exchange at the operator's (local) sizes."""
    sizes = (declared.size(name) for dim in exchange.dims for name in dim)
    return prod(sizes) * exchange.item_bytes * exchange.times * exchange.copies


def sent_share(
    exchange: OperatorCollective, group: CommGroup, cluster: Cluster, execution: ExecutionModel
) -> float:
    """The part of an exchange's bytes that a framework sends: one copy for every node (every rank, in
    one node) that some of an element's copies go to, and no message twice."""
    if exchange.copies == 1 and exchange.kind != "all_to_all":
        return 1.0
    again = min(exchange.times, EXCHANGES) / exchange.times if execution.saves_dispatched else 1.0
    if not execution.dispatches_once:
        return again
    places = group.size // cluster.neighbours_per_node(*group)
    places = places if places > 1 else group.size
    reached = execution.routing.nodes_reached(places, exchange.copies)
    return again * reached / exchange.copies


def count_flops(declared: Loops | None) -> float:
    return declared.flops * prod(loop.size for loop in declared.loops) if declared else 0.0


def streamed_bytes(site: Site, declared: Loops) -> float:
    """Bytes that the kernels of an operator write and read for one another."""
    if not declared.streamed:
        return 0.0
    elements = (
        times * prod(declared.size(name) for name in dim) for dim, times in declared.streamed
    )
    return sum(elements) * site.operands[0].bytes / site.operands[0].elements


def is_elementwise(site: Site) -> bool:
    """Whether every element read yields one element written: a cast, a copy, a concatenation."""
    written = sum(t.elements for t in site.results if t is not None)
    return written > 1 and sum(t.elements for t in site.operands) == written


def score_loops(declared: Loops) -> set[str]:
    """Loops of the score matrix of an attention operator: all but head widths."""
    return {loop.name for loop in declared.loops if loop.name not in "de"}


def score_bytes(site: Site, declared: Loops) -> int:
    """Bytes of the score matrix of an attention operator."""
    elements = prod(declared.size(name) for name in score_loops(declared))
    return elements * site.operands[0].bytes // site.operands[0].elements


def model_flops(model: Model) -> float:
    """Floating-point operations of one forward and backward over the traced batch."""
    flops_by_function: dict[str, float] = {}
    for function in model.functions:
        sites = (site_of(op, function.types) for op in function.ops)
        flops_by_function[function.name] = sum(count_flops(declaration(site)) for site in sites)
    return sum(flops_by_function[call.function] for call in model.calls)
