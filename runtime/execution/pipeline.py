"""Runs one stage's part of a pipeline schedule: its row of `ir.interleave`, step by step.

A stage has one or several pieces of the model; what a piece makes goes to the next stage, from the
last one round to the first. Sends do not wait; what was sent is let go as soon as the neighbour's own
row shows that it has been received, so a stage never holds more than the schedule keeps in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ...ir.plan.interleave import Rows, Step, beside
from ...ir.program import StageValue
from ..comm.process_group import Group
from ..comm.watchdog import watch
from ..compression.activations import Passing

Sent = tuple[dist.Work, Tensor]


class Piece(NamedTuple):
    """A stage's piece of the model. `forward(m, received)` gives what crosses to the next piece,
    `backward(m, tangents)` the gradients of received values that want one; the last piece of the
    model gets no tangents."""

    forward: Callable[[int, list[Tensor]], Sequence[Tensor]]
    backward: Callable[[int, list[Tensor]], Sequence[Tensor | None]]


class Link:
    """Values to and from one neighbouring stage; `row` is the neighbour's of the schedule, `passing`
    says what travels for a value."""

    def __init__(
        self, rank: int, neighbour: int, row: Sequence[Step], device: torch.device, passing: Passing
    ) -> None:
        self.rank, self.neighbour, self.device, self.passing = rank, neighbour, device, passing
        self.place = {step: number for number, step in enumerate(row)}
        self.pending: dict[Step, list[Sent]] = {}

    def send(self, step: Step, values: Sequence[Tensor], group: Group) -> None:
        """Send `values` for the neighbour's `step`."""
        works = []
        for value in values:
            value = self.passing.encode(value.contiguous())
            group.sent["send"] += value.numel() * value.element_size()
            with watch(group.rank, f"send {step} to stage {self.neighbour}"):
                work = dist.isend(value, group.ranks[self.neighbour], group=group.handle)
            assert work is not None
            works.append((work, value))
        self.pending[step] = works

    def receive(self, step: Step, values: Sequence[StageValue], group: Group) -> list[Tensor]:
        """What the neighbour made in its `step`; it has by then received all it needed before."""
        received = []
        for value in values:
            tensor = self.passing.empty(value.type, self.device)
            with watch(group.rank, f"receive {value.name} {step} from stage {self.neighbour}"):
                dist.recv(tensor, group.ranks[self.neighbour], group=group.handle)
            received.append(self.passing.decode(tensor, value.type))
        self.release(self.place[step])
        return received

    def release(self, before: int) -> None:
        """Let go of what the neighbour used up to this place in its row."""
        for step in [s for s in self.pending if self.place[s] <= before]:
            for work, value in self.pending.pop(step):
                with watch(self.rank, f"send of {tuple(value.shape)} for {step}"):
                    work.wait()


class Pipeline:
    """One stage's way through the schedule. `crossing[i]` goes from piece i of the model to the next."""

    def __init__(
        self,
        rows: Rows,
        crossing: Sequence[tuple[StageValue, ...]],
        down: Group,
        up: Group,
        device: torch.device,
        passing: Passing,
    ) -> None:
        self.stage, self.stages, self.device = down.index, len(rows), device
        self.row, self.crossing, self.down, self.up = rows[self.stage], crossing, down, up
        near = {(self.stage + way) % self.stages for way in (-1, 1)} - {self.stage}
        self.links = {n: Link(down.rank, n, rows[n], device, passing) for n in sorted(near)}

    def run(self, pieces: Sequence[Piece]) -> None:
        """The whole row once, with this stage's pieces of the model."""
        for step in self.row:
            kind, chunk, _ = step
            if kind == "F":
                self.forward(step, pieces[chunk])
            else:
                self.backward(step, pieces[chunk])
        for link in self.links.values():
            link.release(len(link.place))

    def place(self, step: Step) -> int:
        """The number of a step's piece in the model."""
        return step[1] * self.stages + self.stage

    def last(self, chunk: int) -> bool:
        """Whether a piece of this stage is the model's last one."""
        return chunk * self.stages + self.stage == len(self.crossing)

    def beside(self, step: Step, way: int) -> tuple[Link, Step]:
        """The neighbour that has the piece before (-1) or after (1), and its step."""
        stage, other = beside(step, self.stage, self.stages, way)
        return self.links[stage], other

    def forward(self, step: Step, piece: Piece) -> None:
        place, received = self.place(step), list[Tensor]()
        if place:
            link, other = self.beside(step, -1)
            received = link.receive(other, self.crossing[place - 1], self.down)
        results = piece.forward(step[2], received)
        if place < len(self.crossing):
            link, other = self.beside(step, 1)
            link.send(other, results, self.down)

    def backward(self, step: Step, piece: Piece) -> None:
        place, tangents = self.place(step), list[Tensor]()
        if place < len(self.crossing):
            link, other = self.beside(step, 1)
            wanted = [v for v in self.crossing[place] if v.gradient]
            tangents = link.receive(other, wanted, self.up)
        gradients = piece.backward(step[2], tangents)
        if place:
            wanted = [v for v in self.crossing[place - 1] if v.gradient]
            assert len(gradients) == len(wanted), f"{len(gradients)} gradients for {wanted}"
            full = [
                self.zeros(value) if gradient is None else gradient
                for gradient, value in zip(gradients, wanted, strict=True)
            ]
            link, other = self.beside(step, -1)
            link.send(other, full, self.up)

    def zeros(self, value: StageValue) -> Tensor:
        dtype = getattr(torch, value.type.dtype)
        return torch.zeros(value.type.shape, dtype=dtype, device=self.device)
