"""CSER: local models that differ by errors, which are reset a random block at a time.

Source: Xie et al., CSER, NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ....ir.compression.program import CompressionAlgorithm
from ....ir.compression.registry import algorithm
from ...comm.group_hierarchy import GroupHierarchy
from ..backends.codec import Codec
from ..exchange import SMALL_BYTES
from .flat import FlatBucket, FlatOptimizer


class CSER(FlatOptimizer):
    """Of every update a block is averaged at once, the rest applied locally and kept as an error;

    every `every` steps a block of the errors is averaged. Evaluate with weights averaged over ranks.
    """

    def __init__(
        self,
        params: Iterable[Any],
        levels: GroupHierarchy,
        lr: float = 0.1,
        momentum: float = 0.9,
        every: int | None = None,
        *,
        program: CompressionAlgorithm | None = None,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        chosen = program or algorithm("cser")
        self.every = chosen.schedule.every if every is None else every
        defaults = {"lr": lr, "momentum": momentum}
        super().__init__(params, levels, chosen, defaults, codec, small_bytes)

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        self.exchange(bucket, "updates", self.program("gradients"), bucket.elements)
        self.exchange(bucket, "errors", self.program("parameters"), bucket.elements)
        bucket.values["momentum"] = torch.zeros_like(x)
        bucket.values["error"] = torch.zeros_like(x)

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        momentum, error = bucket.values["momentum"], bucket.values["error"]
        momentum.mul_(group["momentum"]).add_(gradient)
        update = momentum * -group["lr"]
        updates, errors = bucket.exchanges["updates"], bucket.exchanges["errors"]
        rest = update - updates.selected(update)
        x += updates.all_reduce(update) + rest
        error += rest
        if (bucket.step + 1) % self.every == 0:
            selected = errors.selected(error)
            x += errors.all_reduce(error) - selected
            error -= selected
