"""Peak bytes of a device, term by term: what stays all step, what waits for backward, what passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..ir.amounts import StageBytes
from ..ir.cluster import Device
from ..ir.plan import Optimizer
from .batch_axes import BatchAxes
from .practice import Practice

MARGIN = 0.03  # of the other terms: allocator rounding and fragmentation (assumed)


PASSING = ("temporaries", "communication")  # of one call at a time: the worst counts


def memory_terms(
    parts: Sequence[tuple[StageBytes, BatchAxes]],
    optimizer: Optimizer,
    practice: Practice,
    in_flight: float,
    device: Device,
) -> tuple[tuple[str, int], ...]:
    """Named bytes of a stage from its parts, one per strategy; `in_flight` micro-batches wait for
    backward at the worst moment. What host memory cannot take fits nowhere."""
    terms: dict[str, int] = {}
    for stage, axes in parts:
        for name, amount in part_terms(stage, axes, optimizer, practice, in_flight).items():
            before = terms.get(name, 0)
            terms[name] = max(before, amount) if name in PASSING else before + amount
    terms["margin"] = int(MARGIN * sum(terms.values()))
    terms["runtime"] = device.runtime_overhead_bytes
    beyond = host_bytes([stage for stage, _ in parts], in_flight) - device.host_memory_bytes
    if beyond > 0:
        terms["beyond host memory"] = device.memory_bytes + beyond
    return tuple(terms.items())


def host_bytes(stages: Iterable[StageBytes], in_flight: float) -> int:
    """Bytes of host memory that a device's saved values take."""
    return int(in_flight * sum(stage.host for stage in stages))


def part_terms(
    stage: StageBytes, axes: BatchAxes, optimizer: Optimizer, practice: Practice, in_flight: float
) -> dict[str, int]:
    """Named bytes of the calls of one strategy."""
    elements = stage.trained // stage.item
    gradient = practice.gradient_item_bytes or stage.item
    here = axes.state_bytes(stage.trained, stage.summed, practice.states_over_all)
    buffers = axes.buffer_bytes(stage.biggest_call, practice.sent_in_place)
    kept = axes.compression_bytes(stage.trained, stage.small)
    return ({"compression": kept} if axes.compression else {}) | {
        "parameters": stage.held // axes.pieces("parameter"),
        "gradients": elements * gradient // axes.pieces("gradient"),
        "optimizer": here // stage.item * optimizer.states * optimizer.state_bytes,
        "activations": int(in_flight * (stage.saved - stage.last)) + stage.last,
        "batch data": stage.once,
        "temporaries": stage.transient,
        "communication": buffers + 2 * stage.crossing,
    }


def micro_batches_in_flight(after: int, stages: int, micro_batches: int, chunks: int) -> float:
    """Micro-batches of a whole stage that wait for backward under 1F1B, `after` stages following.

    Interleaved (Narayanan et al. 2021): a stage warms up with 2 * after + (chunks - 1) * stages
    chunks and holds one more.
    """
    if chunks == 1:
        return min(after + 1, micro_batches)
    warm = 2 * after + (chunks - 1) * stages + 1
    return min(warm / chunks, micro_batches)
