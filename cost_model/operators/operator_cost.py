"""Cost of one operator of a per-device function: flops, memory traffic and communication.

The per-device function names its collectives, so the priced operators are exactly the generated
ones. `function_cost` adds the loads up over forward and backward graphs."""

from __future__ import annotations

from math import prod

import msgspec
from msgspec.structs import replace

from ...ir import ops as _declarations  # noqa: F401  (fills the registry)
from ...ir.devices.cluster import Cluster
from ...ir.loops import Loops, OperatorCollective, Site, Work, declaration, site_of
from ...ir.mesh import Mesh
from ...ir.model import Function, Model, Op
from ..communication.collective import Group, collective_seconds
from ..execution_model import GENERATED, ExecutionModel
from .roofline import op_seconds

CollectiveSend = tuple[str, float, str]  # kind of collective, bytes, mesh axis
BATCH = "dp"  # the axis of a priced mesh that stands for all data-parallel axes
SCORE_PASSES = 8  # over attention scores in memory: product, mask, softmax, dropout (assumed)
COLLECTIVES = frozenset(
    {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "cut", "share"}
)


class OperatorLoad(msgspec.Struct, frozen=True):
    """Load of one operator on a device: flops, bytes of memory traffic, collectives.
    `kind` names the operator where the device has a measured curve."""

    work: Work
    dtype: str
    flops: float
    moved_bytes: float
    sends: tuple[CollectiveSend, ...] = ()
    kind: str = ""


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
        seconds = 0.0
        if load.work != "view":
            device = self.cluster.device
            amounts = load.flops, load.moved_bytes
            seconds = float(op_seconds(load.work, *amounts, load.dtype, device, load.kind))
        sent = sum(self.collective_seconds(kind, amount, axis) for kind, amount, axis in load.sends)
        return OpCost(0.0 if is_collective(op) else seconds, sent, load.flops)

    def collective_seconds(self, kind: str, amount: float, name: str) -> float:
        return float(collective_seconds(kind, amount, self.group(name), self.cluster))

    def with_batch_degree(self, batch_degree: int) -> Pricer:
        """The same pricer with `batch_degree` data-parallel replicas."""
        axes = tuple(
            replace(a, size=batch_degree) if a.name == BATCH else a for a in self.mesh.axes
        )
        return Pricer(self.cluster, Mesh(axes), self.loads, self.execution)

    def group(self, name: str) -> Group:
        """The rank groups along an axis."""
        axis = self.mesh.index(name)
        return Group(self.mesh.axes[axis].size, self.mesh.stride(axis))

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
        work = declared.work if declared else "move"
        if work == "move" and is_elementwise(site):
            work = "pointwise"
        flops, sends = count_flops(declared), list[CollectiveSend]()
        if declared is not None:
            for name in joined_axes(site.op):
                sends += [(e.kind, exchanged_bytes(e, declared), name) for e in declared.exchanges]
                # each rank computes for tokens of all joined ranks
                flops *= self.mesh.axes[self.mesh.index(name)].size if declared.pairs else 1
        dtype = next((t.dtype for t in site.operands if t.is_float), "float32")
        if work == "gemm" and self.execution.matrix_dtype is not None:
            dtype = self.execution.matrix_dtype
        moved = moved_bytes(site, declared)
        if work == "attention" and declared is not None and not self.execution.fused_attention:
            moved += SCORE_PASSES * score_bytes(site, declared)
        name = measured_name(site.op, declared)
        kind = name if self.cluster.device.curve((name,), dtype) else ""
        return OperatorLoad(work, dtype, flops, moved, tuple(sends), kind)


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
        return OperatorLoad("move", "float32", 0.0, 0.0)
    tensor = site.operands[0] if kind != "all_gather" else site.results[0]
    assert tensor is not None
    return OperatorLoad(
        "move", tensor.dtype, 0.0, 0.0, ((kind, tensor.bytes, str(site.op.args[1])),)
    )


def collective_copy_bytes(site: Site) -> int:
    """Bytes of the copies that a collective makes beside its result: packed shards before sending,
    and reordered ones after. (A reduction may be an all-to-all and local sums.)"""
    (sent, *_), received = site.operands, site.results[0]
    largest = max(sent.bytes, received.bytes if received is not None else 0)
    return {"all_gather": 1, "reduce_scatter": 2, "all_to_all": 2}.get(
        site.op.target[5:], 0
    ) * largest


def exchanged_bytes(exchange: OperatorCollective, declared: Loops) -> float:
    """Bytes of one exchange at the operator's (local) sizes."""
    sizes = (declared.size(name) for dim in exchange.dims for name in dim)
    return prod(sizes) * exchange.item_bytes * exchange.times


def count_flops(declared: Loops | None) -> float:
    return declared.flops * prod(loop.size for loop in declared.loops) if declared else 0.0


def moved_bytes(site: Site, declared: Loops | None = None) -> int:
    """Bytes read and written by an operator; a look-up reads no more of its table than it
    returns."""
    written = sum(t.bytes for t in site.results if t is not None)
    looks_up = declared is not None and declared.work == "move" and not declared.flops
    return written + sum(min(t.bytes, written) if looks_up else t.bytes for t in site.operands)


def is_elementwise(site: Site) -> bool:
    """Whether every element read yields one element written: a cast, a copy, a concatenation."""
    written = sum(t.elements for t in site.results if t is not None)
    return written > 1 and sum(t.elements for t in site.operands) == written


def score_bytes(site: Site, declared: Loops) -> int:
    """Bytes of the score matrix of an attention operator: the product of all loops but head
    widths."""
    sizes = (loop.size for loop in declared.loops if loop.name not in "de")
    return prod(sizes) * site.operands[0].bytes // site.operands[0].elements


def model_flops(model: Model) -> float:
    """Floating-point operations of one forward and backward over the traced batch."""
    flops_by_function = {}
    for function in model.functions:
        total = 0.0
        for op in function.ops:
            total += count_flops(declaration(site_of(op, function.types)))
        flops_by_function[function.name] = total
    return sum(flops_by_function[call.function] for call in model.calls)
