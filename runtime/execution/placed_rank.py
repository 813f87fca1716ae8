"""Runs one rank's part of a placement; its generated `step` calls this as `run`.

All ranks start sends and receives in one common order and wait only where a value is read, so that
transfers overlap with operators. Sent tensors are kept until the step ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..comm.process_group import Group
from ..comm.transfer import Transfer
from ..state.parameters import ParameterStore
from .calls import StreamSeed


class PlacedRun:
    """Gives operators their tensors, transfers values between ranks and collects gradients.

    `group` has all ranks; tensors are sent contiguous, empty ones not at all. On `device` operators
    without operands make their tensors.
    """

    def __init__(self, store: ParameterStore, group: Group, key: StreamSeed, seed: int) -> None:
        self.device = store.device
        self.store, self.group, self.key, self.seed = store, group, key, seed
        self.step = 0
        self.pending_sends: list[Transfer] = []
        self.pending_receives: dict[int, Transfer] = {}
        self.buffer_updates: dict[str, Tensor] = {}

    def expert_loads(self) -> dict[str, Tensor]:
        """None: operators on devices have all experts of their layer."""
        return {}

    def start(self, step: int) -> None:
        """Begin a step."""
        self.step = step
        self.buffer_updates.clear()

    def finish(self) -> None:
        """End a step: wait for all sends, write the new values of buffers."""
        assert not self.pending_receives, (
            f"{len(self.pending_receives)} tensors were received and never read"
        )
        for transfer in self.pending_sends:
            transfer.wait()
        self.pending_sends.clear()
        self.store.replace_buffers(self.buffer_updates)
        self.buffer_updates.clear()

    def fetch(self, name: str) -> Tensor:
        """A parameter or buffer of this rank."""
        (tensor,) = self.store.fetch([name])
        return tensor

    def random_key(self, call: int) -> Tensor:
        """Key of the random operators of a call in this step, the same on every rank."""
        stream_seed = self.key(self.seed, self.step, call)
        return torch.tensor([stream_seed, 0], dtype=torch.int64, device=self.store.device)

    def fill(self, shape: list[int], number: float, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, number, dtype=dtype, device=self.store.device)

    def send(self, value: Tensor, target: int) -> None:
        """Start sending to rank `target`."""
        if value.numel():
            what = f"{tuple(value.shape)} {value.dtype}"
            self.pending_sends.append(self.group.send(value.contiguous(), target, what))

    def receive(self, source: int, shape: list[int], dtype: torch.dtype) -> Tensor:
        """Start receiving from rank `source`; `wait` before reading the result."""
        value = torch.empty(shape, dtype=dtype, device=self.store.device)
        if value.numel():
            transfer = self.group.start_receive(value, source, f"{shape} {dtype}")
            self.pending_receives[id(value)] = transfer
        return value

    def wait(self, value: Tensor) -> None:
        """Wait until a tensor has been received."""
        transfer = self.pending_receives.pop(id(value), None)
        if transfer is not None:
            transfer.wait()

    def gradient(self, name: str, value: Tensor) -> None:
        """Accumulate the gradient of a parameter of this rank."""
        self.store.accumulate([(name, value)])

    def replace(self, name: str, value: Tensor) -> None:
        """Set the value that a buffer takes at the end of the step."""
        self.buffer_updates[name] = value
