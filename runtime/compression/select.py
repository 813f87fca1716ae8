"""Parts of a bucket that all ranks pick alike, from the step and a shared seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ...ir.compression.stage import Select
from .backends.philox import philox


class Draw(Protocol):
    """What the choice depends on."""

    @property
    def step(self) -> int: ...
    @property
    def seed(self) -> int: ...


def taken(select: Select, bucket: Tensor, states: Mapping[str, Tensor], draw: Draw) -> Tensor:
    """The selected elements, contiguous; what is left goes to the remainder, if there is one."""
    if select.remainder:
        state = states[select.remainder]
        state += bucket
        bucket = state.clone()
        _zero(select, state, draw)
    part = _part(select, bucket, draw)
    return part * float(select.ratio) if select.unbiased else part.contiguous()


def place(select: Select, part: Tensor, elements: int, draw: Draw) -> Tensor:
    """A bucket of `elements` zeros with the selected ones in their places."""
    whole = part.new_zeros(elements)
    if select.kind == "block":
        size = elements // select.ratio
        start = _block(select, draw) * size
        whole[start : start + size] = part
    else:
        whole[_scattered(select, elements, draw)] = part
    return whole


def masked(select: Select, bucket: Tensor, draw: Draw) -> Tensor:
    """`bucket` with zeros wherever it is not selected."""
    return place(select, _part(select, bucket, draw), bucket.numel(), draw)


def _part(select: Select, bucket: Tensor, draw: Draw) -> Tensor:
    if select.kind == "block":
        size = bucket.numel() // select.ratio
        start = _block(select, draw) * size
        return bucket[start : start + size]
    return bucket[_scattered(select, bucket.numel(), draw)]


def _zero(select: Select, state: Tensor, draw: Draw) -> None:
    if select.kind == "block":
        size = state.numel() // select.ratio
        start = _block(select, draw) * size
        state[start : start + size] = 0
    else:
        state[_scattered(select, state.numel(), draw)] = 0


def _block(select: Select, draw: Draw) -> int:
    return int(_words(1, draw)[0]) % select.ratio


def _scattered(select: Select, elements: int, draw: Draw) -> Tensor:
    """One index out of every `ratio` neighbours."""
    count = elements // select.ratio
    return torch.arange(count) * select.ratio + _words(count, draw) % select.ratio


def _words(count: int, draw: Draw) -> Tensor:
    return philox(draw.seed, torch.arange(count), draw.step)[0]
