"""What a call costs when it leaves its saved values in host memory, or runs in pieces."""

from __future__ import annotations

from msgspec.structs import replace

from ...ir.devices.cluster import Device
from ...ir.plan.workload import Piece
from ..communication.compressed_all_reduce import Reductions
from ..operators.function_cost import FunctionCost, FunctionTable, PieceCost
from ..operators.roofline import exposed_host_seconds


def hosted(cost: FunctionCost, device: Device) -> FunctionCost:
    """The call with what it saves in host memory: nothing waits on the device but what it makes or
    reads while it runs."""

    def copied(piece: PieceCost) -> PieceCost:
        more = exposed_host_seconds(cost.leaves, piece.seconds, device)
        seconds = piece.communication_seconds + more
        peak = piece.peak_bytes + cost.leaves
        return replace(piece, communication_seconds=seconds, peak_bytes=peak)

    return replace(
        cost,
        forward=copied(cost.forward),
        backward=copied(cost.backward),
        saved_bytes=0,
        saved_arguments=(0,) * len(cost.saved_arguments),
        saved_results=(0,) * len(cost.saved_results),
        host_bytes=cost.leaves,
    )


def in_pieces(
    piece: FunctionTable,
    table: FunctionTable,
    whole: FunctionCost,
    samples: int,
    pieces: int,
    ways: int,
    reductions: Reductions | None = None,
) -> FunctionCost:
    """The call in so many pieces, of which `piece` has the prices. Beside a piece stand its copies of
    what is cut, and the results, or the gradients, that it adds to."""
    cost = piece.at(samples, "recompute", ways, reductions)
    local, mine = table.locals[0], piece.locals[0]
    cut = [
        inner.value
        for outer, inner in zip(local.inputs, mine.inputs, strict=True)
        if local.types[outer.value] != mine.types[inner.value]
    ]
    copies = piece.bytes(cut).at(samples).sum()
    results = table.bytes([o.value for o in local.outputs]).at(samples).sum()
    gradients = [i.gradient for i in local.inputs if i.gradient is not None]
    added = table.bytes(gradients).at(samples).sum()

    def repeated(one: PieceCost, more: float) -> PieceCost:
        return PieceCost(
            pieces * one.compute_seconds,
            pieces * one.communication_seconds,
            pieces * one.flops,
            one.peak_bytes + round(more),
        )

    return replace(
        whole,
        forward=repeated(cost.forward, copies + results),
        backward=repeated(cost.backward, copies + added),
    )


def times(piece: Piece, count: int, host_bytes: int) -> Piece:
    """A piece run so often, beside which so many bytes pass to or from host memory."""
    return Piece(
        tuple(replace(kernels, count=count * kernels.count) for kernels in piece.kernels),
        tuple(replace(sent, count=count * sent.count) for sent in piece.sent),
        host_bytes,
    )
