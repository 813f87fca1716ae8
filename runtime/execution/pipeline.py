"""Runs one stage's part of a pipeline schedule: its row of `ir.plan.interleave`, step by step.

A stage has one or several model chunks; the results of a chunk go to the next stage, from the last
stage round to the first. Sends do not block; a sent tensor is freed as soon as the neighbour's own row
shows that it has been received, so a stage never holds more than the schedule keeps in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...ir.errors import UsageError
from ...ir.plan.interleave import ScheduleRows, ScheduleStep, neighbour_step
from ...ir.plan.program import StageValue
from ..comm.process_group import Group, Transfer
from ..compression.activations import StageTransferCodec

FORWARD, BACKWARD = "F", "B"


class ModelChunk(NamedTuple):
    """Functions of one model chunk of a stage, for micro-batch `m`.

    `forward(m, received)` gives the values to send to the next chunk, `backward(m, tangents)` the
    gradients of those received values that need one. The last chunk of the model gets no tangents.
    """

    forward: Callable[[int, list[Tensor]], Sequence[Tensor]]
    backward: Callable[[int, list[Tensor]], Sequence[Tensor | None]]


class StageLink:
    """Sends to and receives from one neighbouring stage.

    `row` is the neighbour's row of the schedule, `codec` encodes what is sent.
    """

    def __init__(
        self,
        neighbour: int,
        row: Sequence[ScheduleStep],
        device: torch.device,
        codec: StageTransferCodec,
    ) -> None:
        self.neighbour, self.device, self.codec = neighbour, device, codec
        self.position = {step: number for number, step in enumerate(row)}
        self.pending: dict[ScheduleStep, list[Transfer]] = {}

    def send(self, step: ScheduleStep, values: Sequence[Tensor], group: Group) -> None:
        """Send `values` for the neighbour's `step`."""
        self.pending[step] = [
            group.send(self.codec.encode(value.contiguous()), self.neighbour, f"{step}")
            for value in values
        ]

    def receive(
        self, step: ScheduleStep, values: Sequence[StageValue], group: Group
    ) -> list[Tensor]:
        """Receive the results of the neighbour's `step`, by which it has received all it needed."""
        received = []
        for value in values:
            tensor = self.codec.empty(value.type, self.device)
            group.start_receive(tensor, self.neighbour, f"{value.name} {step}").wait()
            received.append(self.codec.decode(tensor, value.type))
        self.release(self.position[step])
        return received

    def release(self, before: int) -> None:
        """Free sent tensors that the neighbour used up to this position in its row."""
        for step in [s for s in self.pending if self.position[s] <= before]:
            for transfer in self.pending.pop(step):
                transfer.wait()


class PipelineRunner:
    """Runs one stage's row of the schedule.

    `transfers[i]` are the values that model chunk i sends to the next. Raises UsageError for a
    schedule with steps other than forward ("F") and backward ("B").
    """

    def __init__(
        self,
        rows: ScheduleRows,
        transfers: Sequence[tuple[StageValue, ...]],
        down: Group,
        up: Group,
        device: torch.device,
        codec: StageTransferCodec,
    ) -> None:
        verify_kinds(rows)
        self.stage, self.stages, self.device = down.index, len(rows), device
        self.row, self.transfers, self.down, self.up = rows[self.stage], transfers, down, up
        neighbours = {(self.stage + direction) % self.stages for direction in (-1, 1)} - {
            self.stage
        }
        self.links = {n: StageLink(n, rows[n], device, codec) for n in sorted(neighbours)}

    def run(self, chunks: Sequence[ModelChunk]) -> None:
        """Run the row once, on this stage's model chunks."""
        for step in self.row:
            kind, chunk, _ = step
            run_step = self.forward if kind == FORWARD else self.backward
            run_step(step, chunks[chunk])
        for link in self.links.values():
            link.release(len(link.position))

    def chunk_index(self, step: ScheduleStep) -> int:
        """Number, in the whole model, of the chunk that a step runs."""
        return step[1] * self.stages + self.stage

    def last(self, chunk: int) -> bool:
        """Whether a chunk of this stage is the model's last one."""
        return chunk * self.stages + self.stage == len(self.transfers)

    def neighbour(self, step: ScheduleStep, direction: int) -> tuple[StageLink, ScheduleStep]:
        """Link to the stage of the model chunk before (-1) or after (1), and the step it runs."""
        stage, other = neighbour_step(step, self.stage, self.stages, direction)
        return self.links[stage], other

    def forward(self, step: ScheduleStep, chunk: ModelChunk) -> None:
        index, received = self.chunk_index(step), list[Tensor]()
        if index:
            link, other = self.neighbour(step, -1)
            received = link.receive(other, self.transfers[index - 1], self.down)
        results = chunk.forward(step[2], received)
        if index < len(self.transfers):
            link, other = self.neighbour(step, 1)
            link.send(other, results, self.down)

    def backward(self, step: ScheduleStep, chunk: ModelChunk) -> None:
        index, tangents = self.chunk_index(step), list[Tensor]()
        if index < len(self.transfers):
            link, other = self.neighbour(step, 1)
            expected = [v for v in self.transfers[index] if v.gradient]
            tangents = link.receive(other, expected, self.up)
        gradients = chunk.backward(step[2], tangents)
        if index:
            expected = [v for v in self.transfers[index - 1] if v.gradient]
            assert len(gradients) == len(expected), f"{len(gradients)} gradients for {expected}"
            full = [
                self.zeros(value) if gradient is None else gradient
                for gradient, value in zip(gradients, expected, strict=True)
            ]
            link, other = self.neighbour(step, -1)
            link.send(other, full, self.up)

    def zeros(self, value: StageValue) -> Tensor:
        dtype = getattr(torch, value.type.dtype)
        return torch.zeros(value.type.shape, dtype=dtype, device=self.device)


def verify_kinds(rows: ScheduleRows) -> None:
    """Raise UsageError for a step that generated programs have no function for."""
    for stage, row in enumerate(rows):
        for kind, chunk, micro_batch in row:
            if kind not in (FORWARD, BACKWARD):
                raise UsageError(
                    f"schedule: stage {stage} has a step {kind!r} of model chunk {chunk}, "
                    f"micro-batch {micro_batch}; programs run {FORWARD!r} and {BACKWARD!r} only: "
                    f"plan with a schedule without split backwards"
                )
