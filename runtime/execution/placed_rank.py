"""Runs one rank's part of a placement: what its generated `step` calls as `run`.

Sends and receives are begun in the one order that all ranks follow and waited for only where a value
is read, so transfers pass while operators run. What was sent is kept until the step ends.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..comm.process_group import Group
from ..comm.watchdog import watch
from ..state.parameters import Store
from .calls import Key

Underway = tuple[dist.Work, Tensor]


class PlacedRun:
    """Tensors held here, transfers to and from other ranks, and what a step leaves behind.

    `group` has all ranks; a tensor is sent densely, and an empty one not at all.
    """

    def __init__(self, store: Store, group: Group, key: Key, seed: int) -> None:
        self.store, self.group, self.key, self.seed = store, group, key, seed
        self.step = 0
        self.leaving: list[Underway] = []
        self.coming: dict[int, Underway] = {}
        self.updates: dict[str, Tensor] = {}

    def start(self, step: int) -> None:
        """Begin a step."""
        self.step = step
        self.updates.clear()

    def finish(self) -> None:
        """End a step: everything sent has arrived, buffers take their new values."""
        assert not self.coming, f"{len(self.coming)} tensors were received and never read"
        for work, value in self.leaving:
            with watch(self.group.rank, f"send of {tuple(value.shape)} {value.dtype}"):
                work.wait()
        self.leaving.clear()
        self.store.replace(self.updates)
        self.updates.clear()

    def fetch(self, name: str) -> Tensor:
        """A tensor that this rank holds."""
        (tensor,) = self.store.fetch([name])
        return tensor

    def random_key(self, call: int) -> Tensor:
        """What seeds the random operators of a call in this step, the same on every rank."""
        word = self.key(self.seed, self.step, call)
        return torch.tensor([word, 0], dtype=torch.int64, device=self.store.device)

    def fill(self, shape: list[int], number: float, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, number, dtype=dtype, device=self.store.device)

    def send(self, value: Tensor, target: int) -> None:
        """Begin to send to rank `target`."""
        if not value.numel():
            return
        value = value.contiguous()
        self.group.sent["send"] += value.numel() * value.element_size()
        with watch(self.group.rank, f"send of {tuple(value.shape)} to rank {target}"):
            work = dist.isend(value, self.group.ranks[target], group=self.group.handle)
        assert work is not None
        self.leaving.append((work, value))

    def receive(self, source: int, shape: list[int], dtype: torch.dtype) -> Tensor:
        """Memory that rank `source` is about to fill; `wait` before reading it."""
        value = torch.empty(shape, dtype=dtype, device=self.store.device)
        if value.numel():
            with watch(self.group.rank, f"receive of {shape} from rank {source}"):
                work = dist.irecv(value, self.group.ranks[source], group=self.group.handle)
            assert work is not None
            self.coming[id(value)] = work, value
        return value

    def wait(self, value: Tensor) -> None:
        """Wait until a received tensor is here."""
        work, _ = self.coming.pop(id(value), (None, value))
        if work is not None:
            with watch(self.group.rank, f"wait for {tuple(value.shape)} {value.dtype}"):
                work.wait()

    def gradient(self, name: str, value: Tensor) -> None:
        """The gradient of a parameter that this rank holds; the optimizer steps when all have run."""
        self.store.accumulate([(name, value)])

    def replace(self, name: str, value: Tensor) -> None:
        """The value that a buffer takes at the end of the step."""
        self.updates[name] = value
