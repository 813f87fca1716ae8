"""Seconds and bytes of one local function: every operator priced, every live tensor counted.

The local form names its collectives, so what is priced here is exactly what is generated.
"""

from __future__ import annotations

from math import prod

import msgspec

from ..ir import ops as _declarations  # noqa: F401  (fills the registry)
from ..ir.cluster import Cluster
from ..ir.mesh import Mesh
from ..ir.model import Function, Model, Op
from ..ir.op import Exchange, Loops, Site, declaration, site_of
from ..ir.pieces import Variant, made_by, split
from ..ir.tensor import TensorType
from .collective import collective_seconds
from .compute import op_seconds


class OpCost(msgspec.Struct, frozen=True):
    """One operator run once; `communication_seconds` is what it or a collective sends."""

    compute_seconds: float
    communication_seconds: float
    flops: float

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.communication_seconds


class PieceCost(msgspec.Struct, frozen=True):
    """One piece run once: `peak_bytes` is what it holds above its inputs, at the worst moment."""

    compute_seconds: float
    communication_seconds: float
    flops: float
    peak_bytes: int

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.communication_seconds


class FunctionCost(msgspec.Struct, frozen=True):
    """Forward and backward of one call on one device for one micro-batch under one variant.

    `saved_bytes` is what forward leaves for backward beyond `input_bytes`, the activations it was
    given (those are saved too, but made and counted by an earlier call).
    """

    forward: PieceCost
    backward: PieceCost
    saved_bytes: int
    held_bytes: int


class Pricer:
    """Prices local functions on one mesh of one cluster; operators are priced once per shape."""

    def __init__(self, cluster: Cluster, mesh: Mesh) -> None:
        self.cluster, self.mesh = cluster, mesh
        self.seen: dict[tuple[object, ...], OpCost] = {}

    def function(self, local: Function, variant: Variant) -> FunctionCost:
        pieces = split(local, variant)
        roots = storage(local)
        held = {i.value for i in local.held()}
        saved = {roots[v] for v in pieces.saved}
        made = made_by(local.forward_ops)
        return FunctionCost(
            self.piece(local, pieces.forward, roots, _outputs(local) | saved | held, held),
            self.piece(local, pieces.backward, roots, _gradients(local) | held, held | saved),
            sum(local.types[v].bytes for v in saved if v in made or not made),
            sum(local.types[v].bytes for v in held),
        )

    def piece(
        self, local: Function, ops: tuple[Op, ...], roots: list[int], kept: set[int], given: set[int]
    ) -> PieceCost:
        compute = communication = flops = 0.0
        for op in ops:
            cost = self.op(local, op)
            compute += cost.compute_seconds
            communication += cost.communication_seconds
            flops += cost.flops
        return PieceCost(compute, communication, flops, peak_bytes(local, ops, roots, kept, given))

    def op(self, local: Function, op: Op) -> OpCost:
        """The price of one operator on local shards."""
        site = site_of(op, local.types)
        if op.target.startswith("comm.") and op.target[5:] in COLLECTIVES:
            return OpCost(0.0, self.collective(op, site.operands, site.results), 0.0)
        key = (op.target, op.args, op.kwargs.get("over"), site.operands, site.results)
        if key not in self.seen:
            self.seen[key] = self.operator(site)
        return self.seen[key]

    def operator(self, site: Site) -> OpCost:
        declared = declaration(site)
        work = declared.work if declared else "move"
        if work == "view":
            return OpCost(0.0, 0.0, 0.0)
        flops, communication = count_flops(declared), 0.0
        over = site.op.kwargs.get("over")
        if declared is not None and isinstance(over, tuple):
            for name in over:
                axis = self.mesh.index(str(name))
                communication += self.exchanges(declared, axis)
                # what tokens leave on other ranks comes back from others as much
                flops *= self.mesh.axes[axis].size if declared.pairs else 1
        dtype = next((t.dtype for t in site.operands if t.is_float), "float32")
        compute = op_seconds(work, flops, moved_bytes(site), dtype, self.cluster.device)
        return OpCost(float(compute), communication, flops)

    def exchanges(self, declared: Loops, axis: int) -> float:
        """Seconds of what an operator sends over an axis by itself."""
        size, stride = self.mesh.axes[axis].size, self.mesh.stride(axis)
        return sum(
            float(collective_seconds(e.kind, exchanged_bytes(e, declared), size, stride, self.cluster))
            for e in declared.exchanges
        )

    def collective(
        self, op: Op, operands: tuple[TensorType, ...], results: tuple[TensorType | None, ...]
    ) -> float:
        kind = op.target[5:]
        if kind in ("cut", "share"):
            return 0.0
        axis = self.mesh.index(str(op.args[1]))
        size, stride = self.mesh.axes[axis].size, self.mesh.stride(axis)
        whole = operands[0] if kind != "all_gather" else results[0]
        assert whole is not None
        return float(collective_seconds(kind, whole.bytes, size, stride, self.cluster))


COLLECTIVES = frozenset(
    {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "cut", "share"}
)


def exchanged_bytes(exchange: Exchange, declared: Loops) -> float:
    """Bytes of one exchange at the operator's (local) sizes."""
    sizes = (declared.size(name) for dim in exchange.dims for name in dim)
    return prod(sizes) * exchange.item_bytes * exchange.times


def count_flops(declared: Loops | None) -> float:
    return declared.flops * prod(loop.size for loop in declared.loops) if declared else 0.0


def moved_bytes(site: Site) -> int:
    return sum(t.bytes for t in (*site.operands, *site.results) if t is not None)


def storage(local: Function) -> list[int]:
    """For every value the value whose memory it shares: views own none."""
    roots = list(range(len(local.types)))
    for op in local.ops:
        operands = op.operands()
        declared = declaration(site_of(op, local.types))
        if declared is not None and declared.work == "view" and operands:
            for result in op.results:
                roots[result] = roots[operands[0]]
    return roots


def peak_bytes(
    local: Function, ops: tuple[Op, ...], roots: list[int], kept: set[int], given: set[int]
) -> int:
    """The most bytes that the operators hold at once beyond `given`; `kept` values stay."""
    keep = {roots[v] for v in kept} | given
    live: dict[int, int] = {}
    peak = current = 0
    ends = _root_ends(ops, roots, keep)
    for op, ending in zip(ops, ends, strict=True):
        for result in op.results:
            if result >= 0 and roots[result] == result and result not in given:
                live[result] = local.types[result].bytes
                current += live[result]
        peak = max(peak, current)
        for value in ending:
            current -= live.pop(value, 0)
    return peak


def _root_ends(ops: tuple[Op, ...], roots: list[int], keep: set[int]) -> list[tuple[int, ...]]:
    seen, found = set(keep), []
    for op in reversed(ops):
        values = {roots[v] for v in (*op.operands(), *(r for r in op.results if r >= 0))}
        found.append(tuple(values - seen))
        seen |= values
    return found[::-1]


def _outputs(local: Function) -> set[int]:
    return {o.value for o in local.outputs}


def _gradients(local: Function) -> set[int]:
    return {i.gradient for i in local.inputs if i.gradient is not None}


def model_flops(model: Model) -> float:
    """Floating-point operations of one forward and backward over the traced batch."""
    found = {}
    for function in model.functions:
        total = 0.0
        for op in function.ops:
            total += count_flops(declaration(site_of(op, function.types)))
        found[function.name] = total
    return sum(found[call.function] for call in model.calls)
