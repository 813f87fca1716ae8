"""0/1 Adam: gradients of one bit, full ones ever more rarely, then local steps between exchanges.

Source: Lu et al., Maximizing communication efficiency for large-scale training via 0/1 Adam, ICLR
2023.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor

from ....ir.compression.program import CompressionAlgorithm
from ....ir.compression.registry import algorithm
from ...comm.group_hierarchy import GroupHierarchy
from ..backends.codec import Codec
from ..exchange import SMALL_BYTES
from .flat import FlatBucket, FlatOptimizer


class ZeroOneAdam(FlatOptimizer):
    """Until step `warmup` variances move at steps whose distance doubles every `doubles` of them;

    then every `every` steps, or at the schedule's growing distances, the weights' movement since the
    last exchange is averaged, one bit each.
    """

    def __init__(
        self,
        params: Iterable[Any],
        levels: GroupHierarchy,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        warmup: int | None = None,
        doubles: int = 16,
        every: int | None = None,
        *,
        program: CompressionAlgorithm | None = None,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        chosen = program or algorithm("0/1-adam")
        self.warmup = chosen.schedule.warmup if warmup is None else warmup
        self.schedule = chosen.schedule if every is None else replace(chosen.schedule, every=every)
        self.doubles = doubles
        defaults = {"lr": lr, "betas": betas, "eps": eps}
        super().__init__(params, levels, chosen, defaults, codec, small_bytes)

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        self.exchange(bucket, "gradients", self.program("gradients"), bucket.elements)
        self.exchange(bucket, "movement", self.program("momentum"), bucket.elements)
        for name in ("momentum", "variance", "movement"):
            bucket.values[name] = torch.zeros_like(x)
        bucket.values["weights"] = x.clone()  # after the last exchange, the same on all ranks
        bucket.values["rates"] = torch.zeros(())  # sum of learning rates since the last exchange

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        beta1, beta2 = group["betas"]
        momentum, variance = bucket.values["momentum"], bucket.values["variance"]
        if bucket.step < self.warmup:
            if self._measures(bucket.step):
                mean = self.mean(gradient)
                variance.mul_(beta2).addcmul_(mean, mean, value=1 - beta2)
            else:
                mean = bucket.exchanges["gradients"].all_reduce(gradient)
            momentum.lerp_(mean, 1 - beta1)
            unbiased = momentum / (1 - beta1 ** (bucket.step + 1))
            x.sub_(self._scaled(group, bucket, unbiased), alpha=group["lr"])
            bucket.values["weights"].copy_(x)
            return
        momentum.lerp_(gradient, 1 - beta1)
        change = self._scaled(group, bucket, momentum) * -group["lr"]
        bucket.values["movement"] += change
        bucket.values["rates"] += group["lr"]
        x += change
        if self.schedule.exchanges(bucket.step - self.warmup):
            self._synchronise(group, bucket, x)

    def _measures(self, step: int) -> bool:
        """Whether the variance moves: distances 1, 2, 4 …, each `doubles` times."""
        distance, start = 1, 0
        while step >= start + distance * self.doubles:
            start += distance * self.doubles
            distance *= 2
        return (step - start) % distance == 0

    def _root(self, group: dict[str, Any], bucket: FlatBucket) -> Tensor:
        """The denominator, with the bias of as many variance steps as there were taken out."""
        last = min(bucket.step, self.warmup - 1)
        count = sum(self._measures(step) for step in range(last + 1))
        return (bucket.values["variance"] / (1 - group["betas"][1] ** count)).sqrt() + group["eps"]

    def _scaled(self, group: dict[str, Any], bucket: FlatBucket, momentum: Tensor) -> Tensor:
        moved = bucket.values["variance"] > 0
        return torch.where(moved, momentum / self._root(group, bucket), 0.0)

    def _synchronise(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        root, movement, rates = (
            self._root(group, bucket),
            bucket.values["movement"],
            bucket.values["rates"],
        )
        mean = bucket.exchanges["movement"].all_reduce(movement * root)
        mean = torch.where(bucket.values["variance"] > 0, mean, 0.0)
        bucket.values["momentum"].copy_(mean / -rates)
        x.copy_(bucket.values["weights"].add_(mean / root))
        movement.zero_()
        rates.zero_()
