"""Host memory for what forward saves: values leave the device, and are back when backward needs them.

On a GPU they travel on a stream of their own, through pinned memory, beside the work: those of the call
whose backward comes next are fetched while one computes. On a CPU they are plain copies, outside of
what its allocator counts as tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Key = tuple[int, int]  # call, micro-batch
ALIGNMENT_BYTES = 16  # at least that of any element


class View(NamedTuple):
    """How a value lies in a run of bytes; the offset counts elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def of(self, block: Tensor) -> Tensor:
        """The value in the memory of a tensor."""
        empty = torch.empty(0, dtype=self.dtype, device=block.device)
        return empty.set_(block.untyped_storage(), self.offset, self.shape, self.strides)


class Parcel(NamedTuple):
    """Bytes that travel together, and the values in them by their place among all."""

    block: Tensor
    views: tuple[tuple[int, View], ...]


class Host:
    """What waits in host memory, by call and micro-batch; of a micro-batch the last call that came is
    the next to go."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self.waiting: dict[Key, list[Parcel]] = {}
        self.fetched: dict[Key, tuple[Tensor, ...]] = {}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def put(self, key: Key, values: Sequence[Tensor]) -> None:
        """Take these values to host memory."""
        self.waiting[key] = [p._replace(block=self.sent(p.block)) for p in parcels(values)]
        self.bytes += sum(p.block.nbytes for p in self.waiting[key])

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
        found: dict[int, Tensor] = {}
        for parcel in self.waiting.pop(key):
            self.bytes -= parcel.block.nbytes
            block = self.come(parcel.block)
            found |= {number: view.of(block) for number, view in parcel.views}
        return tuple(found[number] for number in range(len(found)))

    def sent(self, block: Tensor) -> Tensor:
        """A copy of some bytes in host memory, or one that is on its way there."""
        if self.stream is None:
            return torch.from_numpy(block.numpy().copy())
        there = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            there.copy_(block, non_blocking=True)
        block.record_stream(self.stream)
        return there

    def come(self, block: Tensor) -> Tensor:
        """The bytes on the device again, or on their way."""
        if self.stream is None:
            return block.clone()
        with torch.cuda.stream(self.stream):
            return block.to(self.device, non_blocking=True)


def parcels(values: Sequence[Tensor]) -> list[Parcel]:
    """Values that share memory as one parcel, where that is no more than they are one by one."""
    shared: dict[int, list[int]] = {}
    for number, value in enumerate(values):
        shared.setdefault(value.untyped_storage().data_ptr(), []).append(number)
    found = []
    for numbers in shared.values():
        together = {n: values[n] for n in numbers}
        spans = [_span(value) for value in together.values()]
        first = min(start for start, _ in spans) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        last = max(end for _, end in spans)
        if last - first <= sum(value.nbytes for value in together.values()) + ALIGNMENT_BYTES:
            found.append(_parcel(together, first, last))
            continue
        for number, value in together.items():
            alone = value.contiguous()
            found.append(_parcel({number: alone}, *_span(alone)))
    return found


def _parcel(values: dict[int, Tensor], first: int, last: int) -> Parcel:
    """The bytes from `first` to before `last` of the storage that these values share."""
    block = View(torch.uint8, (last - first,), (1,), first).of(next(iter(values.values())))
    views = []
    for number, value in values.items():
        offset = (_span(value)[0] - first) // value.itemsize
        views.append((number, View(value.dtype, tuple(value.shape), value.stride(), offset)))
    return Parcel(block, tuple(views))


def _span(value: Tensor) -> tuple[int, int]:
    """The first byte of a value in its storage, and the end of the last."""
    item, start = value.itemsize, int(value.storage_offset()) * value.itemsize
    if not value.numel():
        return start, start
    reach = sum((n - 1) * int(s) for n, s in zip(value.shape, value.stride(), strict=True))
    return start, start + (reach + 1) * item
