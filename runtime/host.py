"""Host memory for what forward saves: values leave the device, and are back when backward needs them.

On a GPU they travel on a stream of their own, through pinned memory, beside the work: those of the call
whose backward comes next are fetched while one computes. On a CPU they are plain copies, outside of
what its allocator counts as tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Key = tuple[int, int]  # call, micro-batch
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


class Host:
    """What waits in host memory, by call and micro-batch; of a micro-batch the last call that came is
    the next to go."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self.waiting: dict[Key, list[Any]] = {}
        self.fetched: dict[Key, tuple[Tensor, ...]] = {}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def put(self, key: Key, values: tuple[Tensor, ...]) -> None:
        """Take these values to host memory."""
        leave = self.copied if self.stream is None else self.sent
        self.waiting[key] = [leave(value) for value in values]
        self.bytes += sum(value.nbytes for value in values)

    def take(self, key: Key) -> tuple[Tensor, ...]:
        """The values again, on the device."""
        values = self.fetched.pop(key) if key in self.fetched else self.fetch(key)
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for value in values:
                value.record_stream(current)
            following = self.following(key)
            if following is not None:
                self.fetched[following] = self.fetch(following)
        self.bytes -= sum(value.nbytes for value in values)
        return values

    def following(self, key: Key) -> Key | None:
        """Whose values are needed after those of `key`, which have gone."""
        return next((other for other in reversed(self.waiting) if other[1] == key[1]), None)

    def clear(self) -> None:
        """Forget everything."""
        self.waiting.clear()
        self.fetched.clear()
        self.bytes = 0

    def fetch(self, key: Key) -> tuple[Tensor, ...]:
        kept = self.waiting.pop(key)
        if self.stream is None:
            return tuple(torch.from_numpy(raw).clone().view(dtype) for raw, dtype in kept)
        with torch.cuda.stream(self.stream):
            return tuple(value.to(self.device, non_blocking=True) for value in kept)

    @staticmethod
    def copied(value: Tensor) -> Any:
        """Its bits as whole numbers, and its type: numpy has no bfloat16."""
        bits = value.detach().contiguous().view(INTEGERS[value.itemsize])
        return bits.numpy().copy(), value.dtype

    def sent(self, value: Tensor) -> Tensor:
        """A pinned copy that is on its way."""
        assert self.stream is not None
        there = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            there.copy_(value, non_blocking=True)
        value.record_stream(self.stream)
        return there
