"""Runs one stage's part of a pipeline schedule: its row of `ir.plan.schedules`, step by step.

A stage has one or several model chunks; the results of a chunk go to the next stage, from the last
stage round to the first. Receives are posted a step before they are needed, where this stage sends
nothing in the same group: a GPU runs the transfers of two ranks there in one order. Sends do not
block; a sent tensor is freed as soon as the neighbour's own row shows that it has been received, so a
stage never holds more than the schedule keeps in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...ir.plan.program import StageValue
from ...ir.plan.schedules.chunk_map import ChunkMap, ScheduleRows, ScheduleStep
from ..comm.process_group import Group
from ..comm.program_groups import MeshGroups
from ..comm.transfer import Transfer
from ..compression.activations import StageTransferCodec

FORWARD, BACKWARD, WEIGHTS = "F", "B", "W"


class ModelChunk(NamedTuple):
    """Functions of one model chunk of a stage, for micro-batch `m`.

    `forward(m, received)` gives the values to send to the next chunk, `backward(m, tangents)` the
    gradients of those received values that need one. The last chunk of the model gets no tangents.
    `weights(m)` is what backward leaves for later, if anything.
    """

    forward: Callable[[int, list[Tensor]], Sequence[Tensor]]
    backward: Callable[[int, list[Tensor]], Sequence[Tensor | None]]
    weights: Callable[[int], None]


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
        self.position = {link_step(s): at for at, s in enumerate(row) if s[0] != WEIGHTS}
        self.pending: dict[ScheduleStep, list[Transfer]] = {}
        self.posted: dict[ScheduleStep, list[Transfer]] = {}

    def send(self, step: ScheduleStep, values: Sequence[Tensor], group: Group) -> None:
        """Send `values` for the neighbour's `step`."""
        self.pending[step] = [
            group.send(self.codec.encode(value.contiguous()), self.neighbour, f"{step}")
            for value in values
        ]

    def post(self, step: ScheduleStep, values: Sequence[StageValue], group: Group) -> None:
        """Begin to receive the results of the neighbour's `step`."""
        self.posted[step] = [
            group.start_receive(
                self.codec.empty(value.type, self.device), self.neighbour, f"{value.name} {step}"
            )
            for value in values
        ]

    def receive(
        self, step: ScheduleStep, values: Sequence[StageValue], group: Group
    ) -> list[Tensor]:
        """Receive the results of the neighbour's `step`, by which it has received all it needed."""
        if step not in self.posted:
            self.post(step, values, group)
        transfers = self.posted.pop(step)
        received = [
            self.codec.decode(transfer.wait(), value.type)
            for transfer, value in zip(transfers, values, strict=True)
        ]
        self.release(self.position[step])
        return received

    def release(self, before: int) -> None:
        """Free sent tensors that the neighbour used up to this position in its row."""
        for step in [s for s in self.pending if self.position[s] <= before]:
            for transfer in self.pending.pop(step):
                transfer.wait()


class PipelineRunner:
    """Runs one stage's row of the schedule.

    `transfers[i]` are the values that model chunk i passes to the next, which may be on the same stage.
    """

    def __init__(
        self,
        rows: ScheduleRows,
        chunks: ChunkMap,
        transfers: Sequence[tuple[StageValue, ...]],
        groups: MeshGroups,
        device: torch.device,
        codec: StageTransferCodec,
    ) -> None:
        self.stage, self.device, self.groups = groups.stage, device, groups
        self.row, self.map, self.transfers = rows[self.stage], chunks, transfers
        near = {self.map.neighbour(self.stage, step, n) for step in self.row for n in (-1, 1)}
        stages = {place[0] for place in near if place is not None} - {self.stage}
        self.links = {n: StageLink(n, rows[n], device, codec) for n in sorted(stages)}
        self.passed: dict[ScheduleStep, list[Tensor]] = {}  # to other chunks of this stage
        sent = {self.channel(step, received=False) for step in self.row}
        received = [self.channel(step, received=True) for step in self.row]
        self.receives_ahead = [c is not None and c not in sent for c in received]

    def run(self, chunks: Sequence[ModelChunk]) -> None:
        """Run the row once, on this stage's model chunks."""
        self.post_ahead(0)  # in order: messages are told apart by it
        for position, step in enumerate(self.row):
            self.post_ahead(position + 1)
            self.run_step(step, chunks[step[1]])
        for link in self.links.values():
            link.release(len(link.position))

    def run_step(self, step: ScheduleStep, chunk: ModelChunk) -> None:
        """Run one step; a backward at once is both of its parts, where the chunk has them apart."""
        kind, _, micro_batch = step
        if kind == FORWARD:
            self.forward(step, chunk)
        elif kind == WEIGHTS:
            chunk.weights(micro_batch)
        else:
            self.backward(step, chunk)
            if kind == BACKWARD:
                chunk.weights(micro_batch)

    def last(self, chunk: int) -> bool:
        """Whether a chunk of this stage is the model's last one."""
        return self.map.number(self.stage, chunk) == len(self.transfers)

    def channel(self, step: ScheduleStep, *, received: bool) -> tuple[int, Group] | None:
        """The stage and group from which a step receives, or to which it sends; None if it does not."""
        near = self.map.neighbour(self.stage, link_step(step), source(step) * (2 * received - 1))
        if step[0] == WEIGHTS or near is None or near[0] == self.stage:
            return None
        kind, chunk, _ = near[1] if received else step
        return near[0], self.groups.transfer_group(kind, chunk)

    def pass_on(self, step: ScheduleStep, offset: int, values: Sequence[Tensor]) -> None:
        """Give results of a step to the model chunk before (-1) or after (1)."""
        stage, other = self.neighbour(step, offset)
        if stage == self.stage:
            self.passed[other] = list(values)
        else:
            self.links[stage].send(other, values, self.groups.transfer_group(step[0], step[1]))

    def post_ahead(self, position: int) -> None:
        """Begin to receive what the step at a position of the row needs, if that may be early."""
        if position < len(self.row) and self.receives_ahead[position]:
            self.post(self.row[position])

    def post(self, step: ScheduleStep) -> None:
        """Begin to receive what a later step needs from another stage."""
        stage, other = self.neighbour(step, source(step))
        group = self.groups.transfer_group(other[0], other[1])
        self.links[stage].post(other, self.incoming(step), group)

    def incoming(self, step: ScheduleStep) -> Sequence[StageValue]:
        """The values that a step receives."""
        number = self.map.number(self.stage, step[1])
        if step[0] == FORWARD:
            return self.transfers[number - 1]
        return [value for value in self.transfers[number] if value.gradient]

    def receive(self, step: ScheduleStep) -> list[Tensor]:
        """What the model chunk before or after gives for a step; nothing at an end of the model."""
        number = self.map.number(self.stage, step[1])
        if number == (0 if step[0] == FORWARD else len(self.transfers)):
            return []
        stage, other = self.neighbour(step, source(step))
        if stage == self.stage:
            return self.passed.pop(link_step(step))
        group = self.groups.transfer_group(other[0], other[1])
        return self.links[stage].receive(other, self.incoming(step), group)

    def neighbour(self, step: ScheduleStep, offset: int) -> tuple[int, ScheduleStep]:
        """Stage and step that give or take what a step takes or gives."""
        near = self.map.neighbour(self.stage, link_step(step), offset)
        assert near is not None, f"{step} of stage {self.stage} is at an end of the model"
        return near

    def forward(self, step: ScheduleStep, chunk: ModelChunk) -> None:
        number = self.map.number(self.stage, step[1])
        results = chunk.forward(step[2], self.receive(step))
        if number < len(self.transfers):
            self.pass_on(step, 1, results)

    def backward(self, step: ScheduleStep, chunk: ModelChunk) -> None:
        number = self.map.number(self.stage, step[1])
        gradients = chunk.backward(step[2], self.receive(step))
        if number:
            expected = [v for v in self.transfers[number - 1] if v.gradient]
            assert len(gradients) == len(expected), f"{len(gradients)} gradients for {expected}"
            full = [
                self.zeros(value) if gradient is None else gradient
                for gradient, value in zip(gradients, expected, strict=True)
            ]
            self.pass_on(step, -1, full)

    def zeros(self, value: StageValue) -> Tensor:
        dtype = getattr(torch, value.type.dtype)
        return torch.zeros(value.type.shape, dtype=dtype, device=self.device)


def link_step(step: ScheduleStep) -> ScheduleStep:
    """The step by which both ends know a transfer: one stage may run a backward at once and its
    neighbour in two parts."""
    return (step[0] if step[0] == FORWARD else BACKWARD, *step[1:])


def source(step: ScheduleStep) -> int:
    """Which model chunk gives what a step receives: the one before (-1) or after (1)."""
    return -1 if step[0] == FORWARD else 1
