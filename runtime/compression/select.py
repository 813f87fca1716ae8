"""Selection of elements of a bucket, the same on all ranks: from the step and a shared seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ...ir.compression.stage import Select
from .backends.philox import philox


class Randomness(Protocol):
    """Step and seed that the selection depends on."""

    @property
    def step(self) -> int: ...
    @property
    def seed(self) -> int: ...


def select_elements(
    select: Select, bucket: Tensor, states: Mapping[str, Tensor], randomness: Randomness
) -> Tensor:
    """The selected elements, contiguous; the others are added to the remainder, if there is one."""
    if select.remainder:
        state = states[select.remainder]
        state += bucket
        bucket = state.clone()
        _zero(select, state, randomness)
    part = _selected(select, bucket, randomness)
    return part * float(select.ratio) if select.unbiased else part.contiguous()


def scatter_selected(select: Select, part: Tensor, elements: int, randomness: Randomness) -> Tensor:
    """A bucket of `elements` with the selected ones in place, zero elsewhere."""
    bucket = part.new_zeros(elements)
    if select.kind == "block":
        size = elements // select.ratio
        start = _block(select, randomness) * size
        bucket[start : start + size] = part
    else:
        bucket[_scattered(select, elements, randomness)] = part
    return bucket


def masked(select: Select, bucket: Tensor, randomness: Randomness) -> Tensor:
    """`bucket` with zeros wherever it is not selected."""
    return scatter_selected(
        select, _selected(select, bucket, randomness), bucket.numel(), randomness
    )


def _selected(select: Select, bucket: Tensor, randomness: Randomness) -> Tensor:
    if select.kind == "block":
        size = bucket.numel() // select.ratio
        start = _block(select, randomness) * size
        return bucket[start : start + size]
    return bucket[_scattered(select, bucket.numel(), randomness)]


def _zero(select: Select, state: Tensor, randomness: Randomness) -> None:
    if select.kind == "block":
        size = state.numel() // select.ratio
        start = _block(select, randomness) * size
        state[start : start + size] = 0
    else:
        state[_scattered(select, state.numel(), randomness)] = 0


def _block(select: Select, randomness: Randomness) -> int:
    return int(_words(1, randomness)[0]) % select.ratio


def _scattered(select: Select, elements: int, randomness: Randomness) -> Tensor:
    """One index out of every `ratio` neighbours."""
    count = elements // select.ratio
    return torch.arange(count) * select.ratio + _words(count, randomness) % select.ratio


def _words(count: int, randomness: Randomness) -> Tensor:
    return philox(randomness.seed, torch.arange(count), randomness.step)[0]
