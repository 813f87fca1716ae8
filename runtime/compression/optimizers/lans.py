"""LANS, LAMB with Nesterov's momentum on normalised gradients, on compressed gradients (CLAN).

Sources: Zheng et al., Accelerated large batch optimization of BERT pretraining in 54 minutes, arXiv
2006.13484; Zhong et al., Compressed communication for large models (CLAN), arXiv 2105.07829.
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
from .flat import FlatBucket, FlatOptimizer, rescale_errors


class LANS(FlatOptimizer):
    """Every tensor moves by its own length, along its momentum and its gradient. Errors of compression
    are in units of gradients, so a new learning rate rescales them."""

    def __init__(
        self,
        params: Iterable[Any],
        levels: GroupHierarchy,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        program: CompressionAlgorithm | None = None,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, levels, program or algorithm("clan"), defaults, codec, small_bytes)

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        self.exchange(bucket, "gradients", self.program("gradients"), bucket.elements)
        bucket.values["momentum"] = torch.zeros_like(x)
        bucket.values["variance"] = torch.zeros_like(x)
        bucket.values["rate"] = torch.tensor(group["lr"])

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        exchange, rate = bucket.exchanges["gradients"], bucket.values["rate"]
        rescale_errors(exchange, float(rate) / group["lr"])
        rate.fill_(group["lr"])
        mean = exchange.all_reduce(gradient)
        momentum, variance = bucket.values["momentum"], bucket.values["variance"]
        for parts in zip(*map(bucket.split, (x, mean, momentum, variance)), strict=True):
            self._move(group, bucket.step + 1, *parts)

    def _move(
        self, group: dict[str, Any], count: int, x: Tensor, gradient: Tensor, m: Tensor, v: Tensor
    ) -> None:
        """One tensor: `x`, its momentum and its variance are updated in place."""
        beta1, beta2 = group["betas"]
        length = gradient.norm()
        unit = gradient / length if length > 0 else gradient
        m.lerp_(unit, 1 - beta1)
        v.mul_(beta2).addcmul_(unit, unit, value=1 - beta2)
        root = (v / (1 - beta2**count)).sqrt() + group["eps"]
        decay = group["weight_decay"] * x
        along = _scaled(m / (1 - beta1**count) / root + decay, x)
        ahead = _scaled(unit / root + decay, x)
        x.sub_(torch.lerp(ahead, along, beta1), alpha=group["lr"])


def _scaled(change: Tensor, x: Tensor) -> Tensor:
    """A change as long as the weights; as it is where either is zero."""
    long, step = x.norm(), change.norm()
    return change * (long / step) if long > 0 and step > 0 else change
