"""Seconds and bytes of a function for any number of samples: every operator priced, every live
tensor counted.

All that an operator computes, moves and sends grows linearly with the samples that a device works
on, and so does every tensor: the local forms for two sizes give them for every size. Only the
roofline is not linear; it is evaluated over all operators at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...ir.loops import Work, site_of
from ...ir.lowering.forward_backward import Pieces, Variant, made_by, split
from ...ir.model import Function, Op
from ...ir.plan.workload import Kernels, Piece, Sent
from ...ir.tensor import ITEM_BYTES, TensorType
from ..communication.compressed_all_reduce import Reductions
from ..execution_model import COMPILED
from .fusion import fuse
from .operator_cost import Load, OpCost, Pricer, is_collective, send_copies
from .roofline import op_seconds

GATHER, SUM = "comm.all_gather", "comm.all_reduce"
CASTS = 0.4  # of a product's own traffic that quantising its operands adds (assumed)
Floats = NDArray[np.float64]


class PieceCost(OpCost, frozen=True):
    """One piece run once: `peak_bytes` is what it holds at its worst moment above its inputs and all
    that waits for backward, which the one leaves and the other lets go of."""

    peak_bytes: int


class FunctionCost(msgspec.Struct, frozen=True):
    """Forward and backward of one call on one device for one micro-batch under one variant.

    `saved_bytes` is what forward makes and leaves for backward, apart from what other calls may hold
    as well: `saved_arguments` and `saved_results` say how many bytes of each backward reads (0: none).
    `host_bytes` of it all wait in host memory. `ends` are the bytes of its arguments, of their gradients
    (0: none) and of its results; `biggest_bytes` those of the biggest tensor it holds.
    """

    forward: PieceCost
    backward: PieceCost
    saved_bytes: int
    saved_arguments: tuple[int, ...]
    saved_results: tuple[int, ...]
    held_bytes: int
    ends: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    biggest_bytes: int
    host_bytes: int = 0

    @property
    def leaves(self) -> int:
        """All bytes that forward leaves on the device for backward, shared or not."""
        return self.saved_bytes + sum(self.saved_arguments) + sum(self.saved_results)


class Line(msgspec.Struct, frozen=True):
    """Amounts that grow linearly: `start + slope * samples`, elementwise."""

    start: Floats
    slope: Floats

    def at(self, samples: int) -> Floats:
        return self.start + self.slope * samples

    def none(self) -> Line:
        """As many amounts of nothing."""
        return Line(0.0 * self.start, 0.0 * self.slope)


class FunctionTable:
    """Prices of one local function, given for `samples[0]` and `samples[1]` samples per device.

    Where only one size is possible, both are the same.
    """

    def __init__(
        self, pricer: Pricer, locals_: tuple[Function, Function], samples: tuple[int, int]
    ):
        self.pricer, self.locals, self.samples = pricer, locals_, samples
        self.roots = self.storage()
        self.pieces: dict[Variant, tuple[_Piece, _Piece, tuple[Line, Line, Line]]] = {}
        sizes = [locals_[0].types[i.value].bytes for i in locals_[0].held()]
        self.held, self.biggest = sum(sizes), max(sizes, default=0)
        self.ends = self.boundary()

    def at(
        self, samples: int, variant: Variant, ways: int, reductions: Reductions | None = None
    ) -> FunctionCost:
        """The price of one call on this many samples per device, on `ways` replicas, some of its sums
        compressed."""
        forward, backward, saved = self.piece(variant)
        inside, arguments, results, *ends = (
            tuple(line.at(samples).astype(np.int64).tolist()) for line in (*saved, *self.ends)
        )
        return FunctionCost(
            forward.at(samples, ways, reductions),
            backward.at(samples, ways, reductions),
            sum(inside),
            arguments,
            results,
            self.held,
            (ends[0], ends[1], ends[2]),
            self.biggest,
        )

    def amounts(self, samples: int, variant: Variant, ways: int) -> tuple[Piece, Piece]:
        """What forward and backward of one call do and send."""
        forward, backward, _ = self.piece(variant)
        return forward.amounts(samples, ways), backward.amounts(samples, ways)

    def piece(self, variant: Variant) -> tuple[_Piece, _Piece, tuple[Line, Line, Line]]:
        """Forward and backward under a variant, and the bytes that the one leaves for the other."""
        if variant not in self.pieces:
            self.pieces[variant] = self.split(variant)
        return self.pieces[variant]

    def split(self, variant: Variant) -> tuple[_Piece, _Piece, tuple[Line, Line, Line]]:
        small, large = (split(local, variant) for local in self.locals)
        local = self.locals[0]
        held = {i.value for i in local.held()}
        saved = {self.roots[v] for v in small.saved}
        if self.pricer.practice.rematerialised:
            saved = self.worth_saving(small, saved | held) - held
        outputs = {o.value for o in local.outputs}
        gradients = {i.gradient for i in local.inputs if i.gradient is not None}
        # others may hold arguments as well; a compiled program waits for nobody
        stay = set() if self.pricer.practice.rematerialised else saved - made_by(local.forward_ops)
        return (
            _Piece(self, (small.forward, large.forward), outputs | saved | held, held, saved),
            _Piece(
                self, (small.backward, large.backward), gradients | held, held | stay, saved - stay
            ),
            self.lasting(saved),
        )

    def boundary(self) -> tuple[Line, Line, Line]:
        """Bytes of the arguments, of their gradients and of the results."""
        local = self.locals[0]
        arguments = local.activations()
        gradients = [-1 if i.gradient is None else i.gradient for i in arguments]
        values = [i.value for i in arguments], gradients, [o.value for o in local.outputs]
        return self.bytes(values[0]), self.bytes(values[1]), self.bytes(values[2])

    def lasting(self, saved: set[int]) -> tuple[Line, Line, Line]:
        """Bytes of saved values made inside; of the arguments and of the results, 0 if not saved."""
        local = self.locals[0]
        arguments = [i.value for i in local.activations()]
        results = [self.roots[o.value] for o in local.outputs]
        inside = sorted(saved & made_by(local.forward_ops) - set(results))
        ends = [[v if v in saved else -1 for v in values] for values in (arguments, results)]
        ends[1] = [-1 if v in arguments or v in ends[1][:i] else v for i, v in enumerate(ends[1])]
        return self.bytes(inside), self.bytes(ends[0]), self.bytes(ends[1])

    def worth_saving(self, pieces: Pieces, saved: set[int]) -> set[int]:
        """Of saved values those that backward cannot have again for little: it gathers gathered ones
        anew, beside its products, and fused kernels remake what only they read."""
        alone = [op for op in pieces.backward if self.work(op) not in (*COMPILED, "view")]
        products = {self.roots[v] for op in alone for v in op.operands()}
        worth = set(saved)
        for op in pieces.forward:
            made = {r for r in op.results if r >= 0}
            sources = {self.roots[v] for v in op.operands()}
            fused = self.work(op) in COMPILED and not made & products
            if sources <= saved and (fused or op.target == GATHER):
                worth -= made
        return worth

    def line(self, amounts: Callable[[Function], Sequence[float]]) -> Line:
        """Through the amounts of both sizes."""
        near, far = (np.array(list(amounts(local)), dtype=np.float64) for local in self.locals)
        return self.through(near, far)

    def through(self, near: Floats, far: Floats) -> Line:
        one, two = self.samples
        slope = (far - near) / (two - one) if two != one else np.zeros_like(near)
        return Line(near - slope * one, slope)

    def bytes(self, values: Sequence[int]) -> Line:
        return self.line(lambda local: [local.types[v].bytes if v >= 0 else 0 for v in values])

    def work(self, op: Op) -> Work:
        return "move" if is_collective(op) else self.pricer.load(self.locals[0], op).work

    def storage(self) -> list[int]:
        """For every value the value whose memory it shares: views own none."""
        local = self.locals[0]
        roots = list(range(len(local.types)))
        for op in local.ops:
            operands = op.operands()
            if operands and self.work(op) == "view":
                for result in op.results:
                    roots[result] = roots[operands[0]]
        return roots


class _Piece:
    """Forward or backward: `kept` values stay to its end, `given` ones are not its own, and `saved`
    ones, which one leaves for the other to release, are counted elsewhere."""

    def __init__(
        self,
        table: FunctionTable,
        ops: tuple[tuple[Op, ...], tuple[Op, ...]],
        kept: set[int],
        given: set[int],
        saved: frozenset[int] | set[int] = frozenset(),
    ) -> None:
        self.pricer = table.pricer
        pairs = [
            (table.pricer.load(table.locals[0], a), table.pricer.load(table.locals[1], b))
            for a, b in zip(*ops, strict=True)
        ]
        self.flops = _line(table, pairs, lambda load: load.flops)
        self.groups = list(_kernels(table, ops[0], pairs, kept | given | saved))
        kernels = sum(len(flops.start) for _, _, _, flops, _ in self.groups)
        dispatched = kernels if self.pricer.practice.compiled else len(ops[0])
        self.host_seconds = dispatched * self.pricer.practice.dispatch_seconds
        sends = [
            (near, far, summed_item(op, pair[0]))
            for op, pair in zip(ops[0], pairs, strict=True)
            for near, far in zip(pair[0].sends, pair[1].sends, strict=True)
        ]
        self.kinds = [(near[0], near[2], item) for near, _, item in sends]
        self.sent = table.through(
            np.array([near[1] for near, *_ in sends]), np.array([far[1] for _, far, _ in sends])
        )
        self.live = _live(table, ops[0], kept, given, saved)

    def at(self, samples: int, ways: int, reductions: Reductions | None = None) -> PieceCost:
        device = self.pricer.cluster.device
        compute = sum(
            float(op_seconds(work, flops.at(samples), moved.at(samples), dtype, device, kind).sum())
            for work, dtype, kind, flops, moved in self.groups
        )
        communication, coding = self.communication(samples, ways, reductions)
        peak = self.live.at(samples).max(initial=0.0) + coding
        compute = max(0.0, compute, self.host_seconds - communication)
        return PieceCost(compute, communication, float(self.flops.at(samples).sum()), round(peak))

    def communication(
        self, samples: int, ways: int, reductions: Reductions | None
    ) -> tuple[float, int]:
        """Seconds of all that is sent, and the most bytes that encoding any of it takes."""
        pricer, seconds, coding = self.pricer.replicas(ways), 0.0, 0
        for (kind, axis, item), n in zip(self.kinds, self.sent.at(samples).tolist(), strict=True):
            priced = None
            if reductions is not None:
                key = axis, n, item, *pricer.place(axis)
                priced = reductions.priced(*key)
                coding = max(coding, reductions.coding_bytes(*key))
            seconds += pricer.send(kind, float(n), axis) if priced is None else priced.seconds
        return seconds, coding

    def amounts(self, samples: int, ways: int) -> Piece:
        kernels = Counter(
            (work, dtype, f, m, kind)
            for work, dtype, kind, flops, moved in self.groups
            for f, m in zip(flops.at(samples).tolist(), moved.at(samples).tolist(), strict=True)
        )
        sent = Counter(
            (*key, n) for key, n in zip(self.kinds, self.sent.at(samples).tolist(), strict=True)
        )
        where = self.pricer.replicas(ways).place
        return Piece(
            tuple(Kernels(*key[:4], count, key[4]) for key, count in kernels.items()),
            tuple(
                Sent(k, a, float(n), *where(a), count, item)
                for (k, a, item, n), count in sent.items()
                if n
            ),
        )


def summed_item(op: Op, load: Load) -> int:
    """Bytes of an element where an operator adds up floating-point values of all ranks of an axis, which
    may travel rounded; 0 elsewhere."""
    summed = op.target == SUM and TensorType((), load.dtype).is_float
    return ITEM_BYTES[load.dtype] if summed else 0


def _kernels(
    table: FunctionTable, ops: tuple[Op, ...], pairs: Sequence[tuple[Load, Load]], kept: set[int]
) -> Iterator[tuple[Work, str, str, Line, Line]]:
    """Kernels by kind of work, type and measured kind: their flops and bytes."""
    works: list[Work] = [
        "view" if is_collective(op) else near.work for op, (near, _) in zip(ops, pairs, strict=True)
    ]
    groups: dict[tuple[Work, str, str], list[tuple[Load, Load]]] = {}
    fused = table.pricer.practice.fused
    for work, pair in zip(works, pairs, strict=True):
        if work != "view" and work not in fused:
            groups.setdefault((work, pair[0].dtype, pair[0].kind), []).append(pair)
    for (work, dtype, kind), loads in groups.items():
        flops = _line(table, loads, lambda load: load.flops)
        moved = _line(table, loads, lambda load: load.moved_bytes)
        yield work, dtype, kind, flops, moved
        if work == "gemm" and table.pricer.practice.matrix_dtype is not None:
            casts = Line(CASTS * moved.start, CASTS * moved.slope)
            yield "pointwise", dtype, "", casts.none(), casts
    if fused:
        kernels = fuse(ops, works, table.roots, {table.roots[v] for v in kept}, fused)
        bytes_of = [[t.bytes for t in local.types] for local in table.locals]
        near, far = (
            np.array([sum(b[v] for v in k.moved) for k in kernels], dtype=np.float64)
            for b in bytes_of
        )
        streamed = table.through(near, far)
        yield "pointwise", "float32", "", streamed.none(), streamed


def _line(
    table: FunctionTable, pairs: Sequence[tuple[Load, Load]], amount: Callable[[Load], float]
) -> Line:
    near, far = (np.array([amount(p[i]) for p in pairs], dtype=np.float64) for i in (0, 1))
    return table.through(near, far)


def _live(
    table: FunctionTable,
    ops: tuple[Op, ...],
    kept: set[int],
    given: set[int],
    saved: frozenset[int] | set[int],
) -> Line:
    """Bytes held beyond `given` and `saved` while each operator runs, `saved` going when used."""
    roots = table.roots
    keep = {roots[v] for v in kept} | given
    own = made_by(ops)
    born: dict[int, int] = dict.fromkeys(sorted(saved - given - own), 0)
    for at, op in enumerate(ops):
        for r in op.results:
            if r >= 0 and roots[r] == r and r not in given:
                born.setdefault(r, at)
    last = {
        roots[v]: at
        for at, op in enumerate(ops)
        for v in (*op.operands(), *(r for r in op.results if r >= 0))
    }
    values = list(born)
    sizes = table.bytes(values)
    change = np.zeros((2, len(ops) + 1))
    beside = [] if table.pricer.practice.sent_in_place else list(_copies(table, ops))
    for row, amounts in enumerate((sizes.start, sizes.slope)):
        np.add.at(change[row], [born[v] for v in values], amounts)
        dead = [(i, v) for i, v in enumerate(values) if v not in keep and v in last]
        ends = [last[v] + (not _overwritten(table, ops[last[v]], v)) for _, v in dead]
        np.add.at(change[row], ends, -amounts[[i for i, _ in dead]])
        for at, copies in beside:
            change[row][at] += copies[row]
            change[row][at + 1] -= copies[row]
        change[row][0] -= sum(amounts[i] for i, v in enumerate(values) if v in saved)
    start, slope = np.cumsum(change, axis=1)[:, :-1]
    return Line(start, slope)


def _copies(table: FunctionTable, ops: tuple[Op, ...]) -> Iterator[tuple[int, tuple[float, float]]]:
    """The operators that send pieces of tensors, with the bytes of copies that they need beside."""
    for at, op in enumerate(ops):
        if is_collective(op):
            sizes = table.line(lambda local, op=op: [send_copies(site_of(op, local.types))])  # type: ignore[misc]
            yield at, (float(sizes.start[0]), float(sizes.slope[0]))


def _overwritten(table: FunctionTable, op: Op, value: int) -> bool:
    """Whether a kernel writes its result over an operand that dies there."""
    if not table.pricer.practice.rematerialised or table.work(op) not in COMPILED:
        return False
    types, operands = table.locals[0].types, {table.roots[v] for v in op.operands()}
    return value in operands and any(
        types[value].bytes == types[r].bytes for r in op.results if r >= 0
    )
