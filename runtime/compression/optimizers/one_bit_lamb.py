"""1-bit LAMB: LAMB until its trust ratios are known, then momenta of one bit and ratios that follow.

Source: Li et al., 1-bit LAMB, HiPC 2022.
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

RATIOS = (0.01, 10.0)  # bounds of LAMB's trust ratio
FACTORS, CHANGE = (0.5, 4.0), 0.1  # bounds of what a frozen ratio is multiplied by, and per step
MEMORY = 0.9  # of the average trust ratio


class OneBitLamb(FlatOptimizer):
    """`warmup` steps are LAMB. Momenta of all tensors are brought to one size before they are sent."""

    def __init__(
        self,
        params: Iterable[Any],
        levels: GroupHierarchy,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup: int | None = None,
        *,
        program: CompressionAlgorithm | None = None,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        chosen = program or algorithm("1-bit-lamb")
        self.warmup = chosen.schedule.warmup if warmup is None else warmup
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, levels, chosen, defaults, codec, small_bytes)

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        self.exchange(bucket, "momentum", self.program("momentum"), bucket.elements)
        for name in ("momentum", "variance", "fresh_variance", "sizes"):
            bucket.values[name] = torch.zeros_like(x)
        bucket.values["ratios"] = torch.zeros(len(bucket.sizes))
        bucket.values["factors"] = torch.ones(len(bucket.sizes))

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        if bucket.step < self.warmup:
            self._warm(group, bucket, x, self.mean(gradient))
            if bucket.step + 1 == self.warmup:
                bucket.values["fresh_variance"].copy_(bucket.values["variance"])
                bucket.values["sizes"].copy_(_sizes(bucket))
        else:
            self._frozen(group, bucket, x, gradient)

    def _warm(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, mean: Tensor) -> None:
        beta1, beta2 = group["betas"]
        momentum, variance = bucket.values["momentum"], bucket.values["variance"]
        momentum.lerp_(mean, 1 - beta1)
        variance.mul_(beta2).addcmul_(mean, mean, value=1 - beta2)
        update = momentum / (variance.sqrt() + group["eps"]) + group["weight_decay"] * x
        for number, (weight, change) in enumerate(
            zip(bucket.split(x), bucket.split(update), strict=True)
        ):
            ratio = _trust(weight, change)
            bucket.values["ratios"][number] *= MEMORY
            bucket.values["ratios"][number] += (1 - MEMORY) * ratio
            weight.sub_(change * ratio, alpha=group["lr"])

    def _frozen(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        beta1, beta2 = group["betas"]
        values = bucket.values
        before, sizes = values["momentum"].clone(), values["sizes"]
        local = before * beta1 + gradient * (1 - beta1)
        momentum = bucket.exchanges["momentum"].all_reduce(local * sizes) / sizes
        mean = (momentum - beta1 * before) / (1 - beta1)
        values["momentum"].copy_(momentum)
        values["fresh_variance"].mul_(beta2).addcmul_(mean, mean, value=1 - beta2)
        root = values["variance"].sqrt() + group["eps"]
        fresh = values["fresh_variance"].sqrt() + group["eps"]
        adaptive = torch.where(values["variance"] > 0, momentum / root, 0.0)
        update = adaptive + group["weight_decay"] * x
        rows = zip(*map(bucket.split, (x, adaptive, update, root / fresh)), strict=True)
        for number, (weight, plain, change, growth) in enumerate(rows):
            share = min(1.0, float(plain.norm()) / max(float(change.norm()), 1e-30))
            factor = share * float(growth.max()) + 1 - share
            ratio = float(values["ratios"][number]) * self._bounded(bucket, number, factor)
            weight.sub_(change, alpha=group["lr"] * ratio)

    def _bounded(self, bucket: FlatBucket, number: int, factor: float) -> float:
        last = float(bucket.values["factors"][number])
        factor = min(max(factor, FACTORS[0]), FACTORS[1])
        factor = min(max(factor, last * (1 - CHANGE)), last * (1 + CHANGE))
        bucket.values["factors"][number] = factor
        return factor


def _trust(weight: Tensor, change: Tensor) -> float:
    """LAMB's ratio of lengths; 1 where either is zero."""
    long, step = float(weight.norm()), float(change.norm())
    return min(max(long / step, RATIOS[0]), RATIOS[1]) if long > 0 and step > 0 else 1.0


def _sizes(bucket: FlatBucket) -> Tensor:
    """Per element, what brings its tensor's momentum to the average root mean square."""
    roots = [float(m.square().mean().sqrt()) for m in bucket.split(bucket.values["momentum"])]
    average = sum(roots) / len(roots)
    factors = [average / root if root > 0 else 1.0 for root in roots]
    sections = [torch.full((n,), f) for n, f in zip(bucket.sizes, factors, strict=True)]
    return torch.cat(sections)
