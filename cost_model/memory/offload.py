"""Cost of a call whose saved values are offloaded to host memory, or that runs in chunks."""

from __future__ import annotations

from msgspec.structs import replace

from ...ir.devices.cluster import Device
from ...ir.plan.workload import CallWork
from ..communication.compressed_all_reduce import CompressedReductions
from ..operators.function_cost import FunctionCost, FunctionCostTable
from ..operators.half_cost import HalfCost
from ..operators.roofline import exposed_host_seconds


def offloaded_cost(cost: FunctionCost, device: Device) -> FunctionCost:
    """Cost of the call with its saved values offloaded: they are on the device only while it
    runs."""

    def copied(half: HalfCost) -> HalfCost:
        exposed = exposed_host_seconds(cost.all_saved_bytes, half.seconds, device)
        seconds = half.communication_seconds + exposed
        peak = half.peak_bytes + cost.all_saved_bytes
        return replace(half, communication_seconds=seconds, peak_bytes=peak)

    return replace(
        cost,
        forward=copied(cost.forward),
        backward=copied(cost.backward),
        saved_bytes=0,
        saved_arguments=(0,) * len(cost.saved_arguments),
        saved_results=(0,) * len(cost.saved_results),
        host_bytes=cost.all_saved_bytes,
    )


def chunked_cost(
    chunk_table: FunctionCostTable,
    table: FunctionCostTable,
    unchunked: FunctionCost,
    samples: int,
    chunks: int,
    batch_degree: int,
    reductions: CompressedReductions | None = None,
) -> FunctionCost:
    """Cost of the call in `chunks` chunks, priced by `chunk_table`. Beyond a chunk's own peak there
    are copies of its input slices, and the results or gradients that it adds to."""
    cost = chunk_table.at(samples, "recompute", batch_degree, reductions)
    local, chunk = table.local_functions[0], chunk_table.local_functions[0]
    sliced = [
        inner.value
        for outer, inner in zip(local.inputs, chunk.inputs, strict=True)
        if local.types[outer.value] != chunk.types[inner.value]
    ]
    copies = chunk_table.bytes_of(sliced).at(samples).sum()
    results = table.bytes_of([o.value for o in local.outputs]).at(samples).sum()
    gradients = [i.gradient for i in local.inputs if i.gradient is not None]
    accumulated = table.bytes_of(gradients).at(samples).sum()

    def times_chunks(one: HalfCost, more: float) -> HalfCost:
        return HalfCost(
            chunks * one.compute_seconds,
            chunks * one.communication_seconds,
            chunks * one.flops,
            one.peak_bytes + round(more),
        )

    return replace(
        unchunked,
        forward=times_chunks(cost.forward, copies + results),
        backward=times_chunks(cost.backward, copies + accumulated),
    )


def repeated(half: CallWork, count: int, host_bytes: int) -> CallWork:
    """The workload repeated `count` times, with `host_bytes` copied to or from host memory."""
    return CallWork(
        tuple(replace(kernels, count=count * kernels.count) for kernels in half.kernels),
        tuple(replace(sent, count=count * sent.count) for sent in half.collectives),
        host_bytes,
        count * half.launch_seconds,
        count * half.stall_seconds,
    )
