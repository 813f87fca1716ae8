"""Peak bytes of a device, term by term: what stays all step, what waits for backward, what passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ir.devices.cluster import Device
from ...ir.plan.interleave import held_pieces
from ...ir.plan.plan import Optimizer
from ...ir.plan.workload import StageBytes
from ...ir.program import BUCKET_BYTES
from ..communication.compressed_collective import FP32_BYTES
from ..communication.data_parallel import BatchAxes
from ..execution_model import Practice

LEADING = 9  # flat vectors while an optimizer that talks itself steps: at most, as counted in runs
MARGIN = 0.03  # of the other terms: allocator rounding and fragmentation (assumed)


class Waiting(NamedTuple):
    """`most` micro-batches of a stage wait for backward at once, of `number` in a step, in so many
    `pieces` of the stage."""

    most: float
    number: int
    pieces: int = 1

    @property
    def others(self) -> bool:
        """Whether gradients of other micro-batches have been added up when most wait."""
        return self.number > self.most

    def cases(self) -> Iterator[tuple[float, bool]]:
        """How many wait while one runs, and whether others' gradients are at hand."""
        if self.others:
            yield self.most, True
            return
        yield self.most, False
        if self.number > 1:
            yield self.most - 1, True


class Worst(NamedTuple):
    """What a stage's calls of one strategy hold at a moment, beside weights and states."""

    batch: int
    gradients: int
    activations: int
    temporaries: int
    communication: int


def memory_terms(
    parts: Sequence[tuple[StageBytes, BatchAxes]],
    optimizer: Optimizer,
    practice: Practice,
    waiting: Waiting,
    device: Device,
) -> tuple[tuple[str, int], ...]:
    """Named bytes of a stage from its parts, one per strategy, at its worst moment. What host memory
    cannot take fits nowhere."""
    terms: dict[str, int] = {}
    for (stage, axes), moment in zip(
        parts, worst_of(parts, practice, waiting, device), strict=True
    ):
        for name, amount in part_terms(stage, axes, optimizer, practice, moment).items():
            terms[name] = terms.get(name, 0) + amount
    terms["margin"] = int(MARGIN * sum(terms.values()))
    terms["runtime"] = device.runtime_overhead_bytes
    beyond = host_bytes([stage for stage, _ in parts], waiting.most) - device.host_memory_bytes
    if beyond > 0:
        terms["beyond host memory"] = device.memory_bytes + beyond
    return tuple(terms.items())


def host_bytes(stages: Iterable[StageBytes], in_flight: float) -> int:
    """Bytes of host memory that a device's saved values take."""
    return int(in_flight * sum(stage.host for stage in stages))


def part_terms(
    stage: StageBytes, axes: BatchAxes, optimizer: Optimizer, practice: Practice, moment: Worst
) -> dict[str, int]:
    """Named bytes of the calls of one strategy at a moment."""
    here = axes.state_bytes(stage.trained, stage.summed, practice.states_over_all)
    kept = axes.compression_bytes(stage.trained, stage.small)
    return ({"compression": kept} if axes.compression else {}) | {
        "parameters": axes.kept(stage.held, "parameter"),
        "gradients": moment.gradients,
        "optimizer": here // stage.item * optimizer.states * optimizer.state_bytes,
        "activations": moment.activations,
        "batch data": moment.batch,
        "temporaries": moment.temporaries,
        "communication": moment.communication,
    }


def worst_of(
    parts: Sequence[tuple[StageBytes, BatchAxes]],
    practice: Practice,
    waiting: Waiting,
    device: Device,
) -> list[Worst]:
    """The worst moment of a stage: one part is at work, of the others all waits that can."""
    busy = [worst(stage, axes, practice, waiting, device) for stage, axes in parts]
    if len(parts) == 1:
        return busy
    idle = [between_calls(stage, axes, practice, waiting) for stage, axes in parts]
    most = max(range(len(parts)), key=lambda p: sum(busy[p]) - sum(idle[p]))
    return [*idle[:most], busy[most], *idle[most + 1 :]]


def between_calls(
    stage: StageBytes, axes: BatchAxes, practice: Practice, waiting: Waiting
) -> Worst:
    """The most that is there with nothing at work: of every call its values wait, or its gradients."""
    batch, per_batch = batch_bytes(stage, waiting), stage.saved - stage.last
    moments = [(m.waiting, m.summed) for m in stage.moments if m.phase == "backward"]
    found = []
    for most, others in waiting.cases():
        whole = others or practice.sent_in_place
        for own, summed in [(stage.saved, stage.trained * whole), (0, stage.trained), *moments]:
            gradients = gradient_bytes(stage, axes, practice, stage.trained if whole else summed)
            activations = int((most - 1) * per_batch) + (own if practice.lets_go else stage.saved)
            found.append(Worst(batch, gradients, activations, 0, 0))
    return max(found, key=sum)


def after_forward(
    stage: StageBytes, axes: BatchAxes, practice: Practice, waiting: Waiting
) -> Worst:
    """All that waits before the first backward that finds as much: a moment of every step."""
    there = stage.trained if waiting.others or practice.sent_in_place else 0
    activations = int((waiting.most - 1) * (stage.saved - stage.last)) + stage.saved
    gradients = gradient_bytes(stage, axes, practice, there)
    return Worst(batch_bytes(stage, waiting), gradients, activations, 0, 0)


def worst(
    stage: StageBytes, axes: BatchAxes, practice: Practice, waiting: Waiting, device: Device
) -> Worst:
    """The worst moment of the calls of one strategy."""
    found = list(at_work(stage, axes, practice, waiting))
    if not practice.sent_in_place:
        found += at_step(stage, axes, practice, waiting, device)
    return max(found, key=sum)


def at_work(
    stage: StageBytes, axes: BatchAxes, practice: Practice, waiting: Waiting
) -> Iterator[Worst]:
    """While calls run."""
    batch, sent = batch_bytes(stage, waiting), crossing_bytes(stage, practice, waiting)
    per_batch, in_place = stage.saved - stage.last, practice.sent_in_place
    buffers = [axes.call_buffers(moment, in_place) for moment in stage.moments]
    whole = gradient_bytes(stage, axes, practice, stage.trained)
    for most, others in waiting.cases():
        before = int((most - 1) * per_batch)
        for moment, (inside, beside, added) in zip(stage.moments, buffers, strict=True):
            summed = min(moment.summed, stage.trained)
            gradients = (
                whole if others or in_place else gradient_bytes(stage, axes, practice, summed)
            )
            own = before + (moment.waiting if practice.lets_go else stage.saved)
            yield Worst(batch, gradients, own, inside, beside + added * others + sent)


def at_step(
    stage: StageBytes, axes: BatchAxes, practice: Practice, waiting: Waiting, device: Device
) -> Iterator[Worst]:
    """While gradients are completed, the optimizer steps and weights return."""
    batch = batch_bytes(stage, waiting)
    whole = gradient_bytes(stage, axes, practice, stage.trained)
    part = gradient_bytes(stage, axes, practice, stage.trained, "optimizer")
    stepped, biggest = (axes.kept(n, "optimizer") for n in (stage.trained, stage.biggest))
    bucket = min(whole, max(BUCKET_BYTES, stage.biggest))
    yield Worst(batch, whole, 0, 0, axes.sum_bytes(bucket, stage.trained, stage.biggest))
    # where the device is the host, optimizers take tensors one by one
    working = stepped if device.host_copies_hide else 2 * biggest
    if axes.leader is not None:
        working = LEADING * (stage.trained // stage.item) * FP32_BYTES
    yield Worst(batch, part, 0, working, 0)
    yield Worst(batch, part, 0, 0, axes.return_bytes(stage.trained))


def batch_bytes(stage: StageBytes, waiting: Waiting) -> int:
    """The batch and what follows from it alone: whole, and the parts of micro-batches that wait."""
    parts = waiting.most * stage.batch if waiting.number > 1 else 0
    return stage.once + waiting.number * stage.inputs + int(parts)


def gradient_bytes(
    stage: StageBytes, axes: BatchAxes, practice: Practice, summed: int, cut_as: str = "gradient"
) -> int:
    """Bytes of the gradients of so many bytes of weights."""
    gradient = practice.gradient_item_bytes or stage.item
    return axes.kept(summed // stage.item * gradient, cut_as)


def crossing_bytes(stage: StageBytes, practice: Practice, waiting: Waiting) -> int:
    """What neighbouring stages are sent, until they have received it, and have sent."""
    if practice.sent_in_place:
        return 2 * stage.crossing
    sent = waiting.most * waiting.pieces + 1
    received = min(2, waiting.number) * waiting.pieces
    if stage.message or stage.coding:  # values go when they are encoded, messages wait
        leaving = stage.crossing + int(sent * stage.message)
        return leaving + received * stage.entering + stage.coding
    return int(sent * stage.crossing) + received * stage.entering


def pieces_in_flight(stages: int, number: int, micro_batches: int, saved: Sequence[float]) -> float:
    """Micro-batches of a whole stage whose bytes wait at the worst moment of an interleaved schedule;
    `saved` bytes of each of its pieces."""
    held = float((_held(stages, number, micro_batches, len(saved)) @ np.array(saved)).max())
    return held / sum(saved) if sum(saved) else 0.0


@cache
def _held(stages: int, number: int, micro_batches: int, pieces: int) -> NDArray[np.float64]:
    return np.array(held_pieces(stages, number, micro_batches, pieces), dtype=np.float64)


def micro_batches_in_flight(after: int, stages: int, micro_batches: int, chunks: int) -> float:
    """Micro-batches of a whole stage that wait for backward under 1F1B, `after` stages following.

    Interleaved (Narayanan et al. 2021): a stage warms up with 2 * after + (chunks - 1) * stages
    chunks and holds one more.
    """
    if chunks == 1:
        return min(after + 1, micro_batches)
    warm = 2 * after + (chunks - 1) * stages + 1
    return min(warm / chunks, micro_batches)
