"""Offloads saved activations to host memory and brings them back for backward.

On a GPU the copies run on a stream of their own, through pinned memory, while the device computes:
the activations of the call whose backward is next are prefetched during the current one. On a CPU they
are plain copies outside of what its allocator counts as tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..host_memory import host_copy

CallKey = tuple[int, int]  # call, micro-batch
ALIGNMENT_BYTES = 16  # at least that of any element


class TensorView(NamedTuple):
    """Strided view of a value in a block of bytes; the offset counts elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def of(self, block: Tensor) -> Tensor:
        """The value, in the storage of `block`."""
        empty = torch.empty(0, dtype=self.dtype, device=block.device)
        return empty.set_(block.untyped_storage(), self.offset, self.shape, self.strides)


class TransferBuffer(NamedTuple):
    """Bytes that are copied together, and views of the values in them by their index in the list."""

    block: Tensor
    views: tuple[tuple[int, TensorView], ...]


class HostBuffer:
    """Saved activations in host memory, by call and micro-batch.

    Backward restores the calls of a micro-batch in reverse order. `bytes` are in host memory now.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self.offloaded: dict[CallKey, list[TransferBuffer]] = {}
        self.fetched: dict[CallKey, tuple[Tensor, ...]] = {}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def offload(self, key: CallKey, values: Sequence[Tensor]) -> None:
        """Copy these values to host memory."""
        self.offloaded[key] = [
            p._replace(block=self.copy_to_host(p.block)) for p in transfer_buffers(values)
        ]
        self.bytes += sum(p.block.nbytes for p in self.offloaded[key])

    def restore(self, key: CallKey) -> tuple[Tensor, ...]:
        """The values of a call, on the device again."""
        values = self.fetched.pop(key) if key in self.fetched else self.fetch(key)
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for value in values:
                value.record_stream(current)
            upcoming = self.next_key(key)
            if upcoming is not None:
                self.fetched[upcoming] = self.fetch(upcoming)
        return values

    def next_key(self, key: CallKey) -> CallKey | None:
        """The call whose values backward needs after those of `key`."""
        return next((other for other in reversed(self.offloaded) if other[1] == key[1]), None)

    def clear(self) -> None:
        """Drop all values."""
        self.offloaded.clear()
        self.fetched.clear()
        self.bytes = 0

    def fetch(self, key: CallKey) -> tuple[Tensor, ...]:
        values: dict[int, Tensor] = {}
        for buffer in self.offloaded.pop(key):
            self.bytes -= buffer.block.nbytes
            block = self.copy_to_device(buffer.block)
            values |= {number: view.of(block) for number, view in buffer.views}
        return tuple(values[number] for number in range(len(values)))

    def copy_to_host(self, block: Tensor) -> Tensor:
        """Copy of a block in host memory; on a GPU it may still be in progress."""
        if self.stream is None:
            return host_copy(block, self.device)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            host = host_copy(block, self.device)
        block.record_stream(self.stream)
        return host

    def copy_to_device(self, block: Tensor) -> Tensor:
        """Copy of a block on the device; on a GPU it may still be in progress."""
        if self.stream is None:
            return block.clone()
        with torch.cuda.stream(self.stream):
            return block.to(self.device, non_blocking=True)


def transfer_buffers(values: Sequence[Tensor]) -> list[TransferBuffer]:
    """Buffers for values: one for those that share a storage, unless separate ones are smaller."""
    shared: dict[int, list[int]] = {}
    for number, value in enumerate(values):
        shared.setdefault(value.untyped_storage().data_ptr(), []).append(number)
    buffers = []
    for numbers in shared.values():
        sharing = {n: values[n] for n in numbers}
        spans = [_span(value) for value in sharing.values()]
        first = min(start for start, _ in spans) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        last = max(end for _, end in spans)
        if last - first <= sum(value.nbytes for value in sharing.values()) + ALIGNMENT_BYTES:
            buffers.append(_transfer_buffer(sharing, first, last))
            continue
        for number, value in sharing.items():
            alone = value.contiguous()
            buffers.append(_transfer_buffer({number: alone}, *_span(alone)))
    return buffers


def _transfer_buffer(values: dict[int, Tensor], first: int, last: int) -> TransferBuffer:
    """The bytes from `first` to before `last` of the storage that these values share."""
    block = TensorView(torch.uint8, (last - first,), (1,), first).of(next(iter(values.values())))
    views = []
    for number, value in values.items():
        offset = (_span(value)[0] - first) // value.itemsize
        views.append((number, TensorView(value.dtype, tuple(value.shape), value.stride(), offset)))
    return TransferBuffer(block, tuple(views))


def _span(value: Tensor) -> tuple[int, int]:
    """The first byte of a value in its storage, and the end of the last."""
    item, start = value.itemsize, int(value.storage_offset()) * value.itemsize
    if not value.numel():
        return start, start
    reach = sum((n - 1) * int(s) for n, s in zip(value.shape, value.stride(), strict=True))
    return start, start + (reach + 1) * item
