"""Runs one device group's row of the schedule, with neighbours that differ from micro-batch to
micro-batch and in how they hold values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....ir.model.layout import local_type
from ....ir.plan.groups.schedule import Tile, group_rows, neighbours
from ....ir.plan.program import GroupProgram, GroupValue
from ....ir.plan.schedules.chunk_map import ScheduleStep
from ...comm.process_group import Group
from ...comm.program_groups import MeshGroups
from ...comm.transfer import Transfer
from ..pipeline import FORWARD, ModelChunk
from .border import Border, side


class GroupPipeline:
    """Runs the row of this rank's device group."""

    def __init__(self, groups: MeshGroups, device: torch.device, *, forward_only: bool) -> None:
        assert groups.devices is not None
        programs, number = groups.devices.programs, groups.devices.number
        tiles = [Tile(one.calls, one.micro_batches) for one in programs]
        self.mine, self.near = programs[number], neighbours(tiles)[number]
        row = group_rows(tiles)[number]
        self.row = tuple(s for s in row if s[0] == FORWARD) if forward_only else row
        self.device, self.calls = device, max(one.calls[1] for one in programs)
        self.down, self.up, rank = groups.down, groups.up, groups.pool.rank
        before = {n: programs[n] for n in sorted(set(self.near.before.values()))}
        after = {n: programs[n] for n in sorted(set(self.near.after.values()))}
        self.from_before = {
            n: _border(one, self.mine, self.down, rank) for n, one in before.items()
        }
        self.to_after = {n: _border(self.mine, one, self.down, rank) for n, one in after.items()}
        self.from_after = {n: _back(self.mine, one, self.up, rank) for n, one in after.items()}
        self.to_before = {n: _back(one, self.mine, self.up, rank) for n, one in before.items()}

    def run(self, chunks: Sequence[ModelChunk]) -> None:
        """Run the row once. What was sent forward is freed when its gradient comes, what was sent back
        once as much again is on its way."""
        self.sent: dict[int, list[Transfer]] = {}
        self.returned: list[list[Transfer]] = []
        for step in self.row:
            run_step = self.forward if step[0] == FORWARD else self.backward
            run_step(step, chunks[0])
        for transfers in (*self.sent.values(), *self.returned):
            _wait(transfers)

    def last(self, chunk: int) -> bool:
        """Whether the group runs the model's last calls."""
        return self.mine.calls[1] == self.calls

    def forward(self, step: ScheduleStep, chunk: ModelChunk) -> None:
        number, received = step[2], list[Tensor]()
        if number in self.near.before:
            received = self.from_before[self.near.before[number]].receive(f"{step}", self.device)
        results = chunk.forward(number, received)
        if number in self.near.after:
            self.sent[number] = self.to_after[self.near.after[number]].send(results, f"{step}")

    def backward(self, step: ScheduleStep, chunk: ModelChunk) -> None:
        number, tangents = step[2], list[Tensor]()
        if number in self.near.after:
            tangents = self.from_after[self.near.after[number]].receive(f"{step}", self.device)
            _wait(self.sent.pop(number))
        gradients = chunk.backward(number, tangents)
        if number in self.near.before:
            expected = _with_gradient(self.mine.received)
            full = [
                self.zeros(value) if gradient is None else gradient
                for gradient, value in zip(gradients, expected, strict=True)
            ]
            border = self.to_before[self.near.before[number]]
            self.returned.append(border.send(full, f"{step}"))
            if len(self.returned) > len(self.row) // 2 or len(self.returned) > 8:
                _wait(self.returned.pop(0))

    def zeros(self, value: GroupValue) -> Tensor:
        """A gradient that nothing was added to."""
        layout = value.gradient_layout
        assert layout is not None
        local = local_type(value.type, value.factors, layout, self.mine.table.mesh)
        return torch.zeros(local.shape, dtype=getattr(torch, local.dtype), device=self.device)


def _wait(transfers: Sequence[Transfer]) -> None:
    for transfer in transfers:
        transfer.wait()


def _with_gradient(values: Sequence[GroupValue]) -> list[GroupValue]:
    return [value for value in values if value.gradient_layout is not None]


def _border(one: GroupProgram, other: GroupProgram, group: Group, rank: int) -> Border:
    """Values from one group to the next."""
    return Border(
        [side(one, value, gradient=False) for value in one.sent],
        [side(other, value, gradient=False) for value in other.received],
        group,
        rank,
    )


def _back(one: GroupProgram, other: GroupProgram, group: Group, rank: int) -> Border:
    """Gradients from a group back to the one before."""
    return Border(
        [side(other, value, gradient=True) for value in _with_gradient(other.received)],
        [side(one, value, gradient=True) for value in _with_gradient(one.sent)],
        group,
        rank,
    )
