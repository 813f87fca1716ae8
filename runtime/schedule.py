"""Runs one stage's part of a pipeline schedule: the table of `ir.schedule`, row by row.

Sends do not wait; what was sent is let go as soon as the neighbour's own row of the table shows
that it has been received, so a stage never holds more than the schedule keeps in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..ir.errors import MismatchError
from ..ir.program import StageValue
from ..ir.schedule import SCHEDULES, Slot
from ..ir.schedule import Table as Order
from .group import Group
from .watchdog import watch

Sent = tuple[dist.Work, Tensor]


def order(schedule: str, stages: int, micro_batches: int) -> Order:
    """The table of a schedule by name."""
    if schedule not in SCHEDULES:
        raise MismatchError(
            f"schedule {schedule!r} is not known here; known: {', '.join(SCHEDULES)}"
        )
    return SCHEDULES[schedule](stages, micro_batches)


class Link:
    """Values to and from one neighbouring stage; `rows` is the neighbour's row of the schedule."""

    def __init__(self, group: Group, neighbour: int, rows: Sequence[Slot]) -> None:
        self.group, self.neighbour = group, neighbour
        self.place = {row: number for number, row in enumerate(rows)}
        self.pending: dict[Slot, list[Sent]] = {}

    def send(self, row: Slot, values: Sequence[Tensor], group: Group) -> None:
        """Send `values` for the neighbour's `row`."""
        works = []
        for value in values:
            value = value.contiguous()
            group.sent["send"] += value.numel() * value.element_size()
            with watch(group.rank, f"send {row} to stage {self.neighbour}"):
                work = dist.isend(value, group.ranks[self.neighbour], group=group.handle)
            assert work is not None
            works.append((work, value))
        self.pending[row] = works

    def receive(
        self, row: Slot, values: Sequence[StageValue], group: Group, device: torch.device
    ) -> list[Tensor]:
        """What the neighbour made in its `row`; it has by then received all it needed before."""
        received = []
        for value in values:
            tensor = torch.empty(
                value.type.shape, dtype=getattr(torch, value.type.dtype), device=device
            )
            with watch(group.rank, f"receive {value.name} {row} from stage {self.neighbour}"):
                dist.recv(tensor, group.ranks[self.neighbour], group=group.handle)
            received.append(tensor)
        self.release(self.place[row])
        return received

    def release(self, before: int) -> None:
        """Let go of what the neighbour used up to this row."""
        for row in [r for r in self.pending if self.place[r] <= before]:
            for work, value in self.pending.pop(row):
                with watch(self.group.rank, f"send of {tuple(value.shape)} for {row}"):
                    work.wait()


class Pipeline:
    """One stage's way through the schedule. `forward` and `backward` run a micro-batch.

    `forward(m, received)` gives what crosses to the next stage, `backward(m,
    tangents)` the gradients of received values that want one; the last stage gets no tangents.
    """

    def __init__(
        self,
        order: Order,
        crossing: Sequence[tuple[StageValue, ...]],
        down: Group,
        up: Group,
        device: torch.device,
    ) -> None:
        self.stage, self.device, self.down, self.up = down.index, device, down, up
        self.rows = order[self.stage]
        self.received = crossing[self.stage - 1] if self.stage else ()
        self.sent = crossing[self.stage] if self.stage + 1 < len(order) else ()
        self.before = Link(up, self.stage - 1, order[self.stage - 1]) if self.stage else None
        self.last = self.stage + 1 == len(order)
        self.after = None if self.last else Link(down, self.stage + 1, order[self.stage + 1])

    def run(
        self,
        forward: Callable[[int, list[Tensor]], Sequence[Tensor]],
        backward: Callable[[int, list[Tensor]], Sequence[Tensor | None]],
    ) -> None:
        """All rows once."""
        for kind, number in self.rows:
            if kind == "F":
                self.forward(number, forward)
            else:
                self.backward(number, backward)
        for link in (self.before, self.after):
            if link is not None:
                link.release(len(link.place))

    def forward(
        self, number: int, forward: Callable[[int, list[Tensor]], Sequence[Tensor]]
    ) -> None:
        row = ("F", number)
        received: list[Tensor] = []
        if self.before is not None:
            received = self.before.receive(row, self.received, self.down, self.device)
        results = forward(number, received)
        if self.after is not None:
            self.after.send(row, results, self.down)

    def backward(
        self, number: int, backward: Callable[[int, list[Tensor]], Sequence[Tensor | None]]
    ) -> None:
        row = ("B", number)
        tangents: list[Tensor] = []
        if self.after is not None:
            wanted = [v for v in self.sent if v.gradient]
            tangents = self.after.receive(row, wanted, self.up, self.device)
        gradients = backward(number, tangents)
        if self.before is None:
            return
        wanted = [v for v in self.received if v.gradient]
        assert len(gradients) == len(wanted), f"{len(gradients)} gradients for {wanted}"
        full = [
            self.zeros(value) if gradient is None else gradient
            for gradient, value in zip(gradients, wanted, strict=True)
        ]
        self.before.send(row, full, self.up)

    def zeros(self, value: StageValue) -> Tensor:
        dtype = getattr(torch, value.type.dtype)
        return torch.zeros(value.type.shape, dtype=dtype, device=self.device)
