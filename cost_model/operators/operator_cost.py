"""What one operator of a local function costs: the work it does, the bytes it touches and sends.

The local form names its collectives, so what is priced here is exactly what is generated. All that
an operator computes, moves and sends is one `Load`; `table` adds them up over pieces.
"""

from __future__ import annotations

from math import prod

import msgspec
from msgspec.structs import replace

from ...ir import ops as _declarations  # noqa: F401  (fills the registry)
from ...ir.devices.cluster import Cluster
from ...ir.loops import Exchange, Loops, Site, Work, declaration, site_of
from ...ir.mesh import Mesh
from ...ir.model import Function, Model, Op
from ..communication.collective import collective_seconds
from ..execution_model import GENERATED, Practice
from .roofline import op_seconds

Send = tuple[str, float, str]  # kind of collective, bytes, mesh axis
BATCH = "dp"  # the axis of a priced mesh that stands for all that only split the batch
SCORE_PASSES = 8  # over the scores when they are written: product, mask, softmax, dropout (assumed)
COLLECTIVES = frozenset(
    {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "cut", "share"}
)


class Load(msgspec.Struct, frozen=True):
    """What one operator asks of a device: floating-point operations, bytes touched, what it sends.
    `kind` names it where the device was measured at such operators."""

    work: Work
    dtype: str
    flops: float
    moved_bytes: float
    sends: tuple[Send, ...] = ()
    kind: str = ""


class OpCost(msgspec.Struct, frozen=True):
    """One operator, or several, run once; `communication_seconds` is what they or collectives send."""

    compute_seconds: float
    communication_seconds: float
    flops: float

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.communication_seconds


class Pricer:
    """Prices operators on one mesh of one cluster; `loads` remembers operators by their shapes."""

    def __init__(
        self,
        cluster: Cluster,
        mesh: Mesh,
        loads: dict[tuple[object, ...], Load] | None = None,
        practice: Practice = GENERATED,
    ) -> None:
        self.cluster, self.mesh, self.practice = cluster, mesh, practice
        self.loads = {} if loads is None else loads

    def op(self, local: Function, op: Op) -> OpCost:
        """The price of one operator on local shards."""
        load = self.load(local, op)
        seconds = 0.0
        if load.work != "view":
            device = self.cluster.device
            amounts = load.flops, load.moved_bytes
            seconds = float(op_seconds(load.work, *amounts, load.dtype, device, load.kind))
        sent = sum(self.send(kind, amount, axis) for kind, amount, axis in load.sends)
        return OpCost(0.0 if is_collective(op) else seconds, sent, load.flops)

    def send(self, kind: str, amount: float, name: str) -> float:
        size, stride = self.place(name)
        return float(collective_seconds(kind, amount, size, stride, self.cluster))

    def replicas(self, ways: int) -> Pricer:
        """The same prices where the batch lies on so many replicas."""
        axes = tuple(replace(a, size=ways) if a.name == BATCH else a for a in self.mesh.axes)
        return Pricer(self.cluster, Mesh(axes), self.loads, self.practice)

    def place(self, name: str) -> tuple[int, int]:
        """Ranks along an axis, and ranks between neighbours."""
        axis = self.mesh.index(name)
        return self.mesh.axes[axis].size, self.mesh.stride(axis)

    def load(self, local: Function, op: Op) -> Load:
        operands = tuple(local.types[v] for v in op.operands())
        results = tuple(local.types[v] if v >= 0 else None for v in op.results)
        # flops of joined operators depend on how many ranks they join, not on who they are
        joined = tuple((name, self.mesh.axes[self.mesh.index(name)].size) for name in over(op))
        key = (op.target, op.args, joined, operands, results)
        if key not in self.loads:
            site = Site(op, operands, results)
            self.loads[key] = _collective(site) if is_collective(op) else self.operator(site)
        return self.loads[key]

    def operator(self, site: Site) -> Load:
        declared = declaration(site)
        work = declared.work if declared else "move"
        if work == "move" and is_elementwise(site):
            work = "pointwise"
        flops, sends = count_flops(declared), list[Send]()
        if declared is not None:
            for name in over(site.op):
                sends += [(e.kind, exchanged_bytes(e, declared), name) for e in declared.exchanges]
                # what tokens leave on other ranks comes back from others as much
                flops *= self.mesh.axes[self.mesh.index(name)].size if declared.pairs else 1
        dtype = next((t.dtype for t in site.operands if t.is_float), "float32")
        if work == "gemm" and self.practice.matrix_dtype is not None:
            dtype = self.practice.matrix_dtype
        moved = moved_bytes(site, declared)
        if work == "attention" and declared is not None and not self.practice.fused_attention:
            moved += SCORE_PASSES * score_bytes(site, declared)
        name = measured_name(site.op, declared)
        kind = name if self.cluster.device.curve((name,), dtype) else ""
        return Load(work, dtype, flops, moved, tuple(sends), kind)


def measured_name(op: Op, declared: Loops | None) -> str:
    """The name under which an operator is measured: `mul`, `attention`, `random_attention`."""
    name = op.target.split(".")[1]
    draws = declared is not None and any(loop.name == "key" for loop in declared.loops)
    return f"random_{name}" if draws and declared and declared.work == "attention" else name


def over(op: Op) -> tuple[str, ...]:
    """The mesh axes whose ranks one operator joins."""
    names = op.kwargs.get("over")
    return tuple(str(name) for name in names) if isinstance(names, tuple) else ()


def is_collective(op: Op) -> bool:
    return op.target.startswith("comm.") and op.target[5:] in COLLECTIVES


def _collective(site: Site) -> Load:
    kind = site.op.target[5:]
    if kind in ("cut", "share"):
        return Load("move", "float32", 0.0, 0.0)
    whole = site.operands[0] if kind != "all_gather" else site.results[0]
    assert whole is not None
    return Load("move", whole.dtype, 0.0, 0.0, ((kind, whole.bytes, str(site.op.args[1])),))


def send_copies(site: Site) -> int:
    """Bytes of the copies that a collective makes beside its result: pieces lie together to be sent,
    and what arrives is put in order. (A sum over ranks may be an exchange, and a sum at each.)"""
    (sent, *_), received = site.operands, site.results[0]
    whole = max(sent.bytes, received.bytes if received is not None else 0)
    return {"all_gather": 1, "reduce_scatter": 2, "all_to_all": 2}.get(
        site.op.target[5:], 0
    ) * whole


def exchanged_bytes(exchange: Exchange, declared: Loops) -> float:
    """Bytes of one exchange at the operator's (local) sizes."""
    sizes = (declared.size(name) for dim in exchange.dims for name in dim)
    return prod(sizes) * exchange.item_bytes * exchange.times


def count_flops(declared: Loops | None) -> float:
    return declared.flops * prod(loop.size for loop in declared.loops) if declared else 0.0


def moved_bytes(site: Site, declared: Loops | None = None) -> int:
    """What an operator reads and writes; a look-up reads no more of its table than it returns."""
    made = sum(t.bytes for t in site.results if t is not None)
    looks_up = declared is not None and declared.work == "move" and not declared.flops
    return made + sum(min(t.bytes, made) if looks_up else t.bytes for t in site.operands)


def is_elementwise(site: Site) -> bool:
    """Whether every element read becomes one element made: a cast, a copy, a concatenation."""
    made = sum(t.elements for t in site.results if t is not None)
    return made > 1 and sum(t.elements for t in site.operands) == made


def score_bytes(site: Site, declared: Loops) -> int:
    """The matrix of scores of an attention operator: every loop but the heads' widths."""
    sizes = (loop.size for loop in declared.loops if loop.name not in "de")
    return prod(sizes) * site.operands[0].bytes // site.operands[0].elements


def model_flops(model: Model) -> float:
    """Floating-point operations of one forward and backward over the traced batch."""
    found = {}
    for function in model.functions:
        total = 0.0
        for op in function.ops:
            total += count_flops(declaration(site_of(op, function.types)))
        found[function.name] = total
    return sum(found[call.function] for call in model.calls)
