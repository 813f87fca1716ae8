"""Local steps of any optimizer, then one global step along the sign of a momentum.

The movement of all ranks is averaged in shards; the signs of a shard's momentum are all that others
need, so the all-gather takes one bit per element and loses nothing.

Source: Yu et al., Distributed sign momentum with local steps, arXiv 2411.17866.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ....ir.compression.program import CompressionAlgorithm
from ....ir.compression.registry import algorithm
from ...comm.group_hierarchy import GroupHierarchy
from ..backends.codec import Codec
from ..exchange import SMALL_BYTES
from .flat import FlatBucket
from .wrapped import Base, WrappedOptimizer


class SignMomentum(WrappedOptimizer):
    """`base([flat], lr=…)` creates the local optimizer of a group.

    `rate` multiplies the learning rate in the global step, which is taken every `every` steps.
    """

    def __init__(
        self,
        params: Iterable[Any],
        levels: GroupHierarchy,
        lr: float = 1e-3,
        base: Base = torch.optim.AdamW,
        betas: tuple[float, float] = (0.95, 0.98),
        weight_decay: float = 0.1,
        rate: float = 1.0,
        every: int | None = None,
        *,
        program: CompressionAlgorithm | None = None,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        chosen = program or algorithm("sign-momentum")
        self.every = chosen.schedule.every if every is None else every
        self.betas, self.weight_decay, self.rate = betas, weight_decay, rate
        super().__init__(
            params, levels, lr, base, program=chosen, codec=codec, small_bytes=small_bytes
        )

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        size = self.levels.all.size
        columns = -(-bucket.elements // size)
        self.exchange(bucket, "movement", self.program("parameters"), columns * size)
        self.exchange(bucket, "signs", self.program("weights"), columns)
        bucket.values["start"] = x.clone()
        bucket.values["momentum"] = torch.zeros(columns)
        self.create_base(group, bucket, x.clone())

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        x.copy_(self.update(group, bucket, gradient))
        if (bucket.step + 1) % self.every == 0:
            x.copy_(self._global(group, bucket, x))
            bucket.values["weights"].copy_(x)

    def _global(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> Tensor:
        weights, momentum = bucket.values["start"], bucket.values["momentum"]
        beta1, beta2 = self.betas
        size, columns = self.levels.all.size, momentum.numel()
        moved = pad(weights - x, (0, size * columns - bucket.elements)).view(size, columns)
        mean = bucket.exchanges["movement"].reduce_scatter(moved) / group["lr"]
        direction = torch.lerp(mean, momentum, beta1)
        momentum.copy_(torch.lerp(mean, momentum, beta2))
        signs = (
            bucket.exchanges["signs"].all_gather(direction).reshape(-1)[: bucket.elements].sign()
        )
        weights.sub_(signs + self.weight_decay * weights, alpha=self.rate * group["lr"])
        return weights
