"""Local AdaAlter: AdaGrad whose denominator lags a step, on local weights averaged now and then.

Source: Xie et al., Local AdaAlter, arXiv 1911.09030.
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


class LocalAdaAlter(FlatOptimizer):
    """Weights and squared gradients are averaged every `every` steps; with 1 it is AdaAlter."""

    def __init__(
        self,
        params: Iterable[Any],
        levels: GroupHierarchy,
        lr: float = 0.5,
        eps: float = 1.0,
        initial: float = 1.0,
        every: int | None = None,
        *,
        program: CompressionAlgorithm | None = None,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        chosen = program or algorithm("local-adaalter")
        self.every = chosen.schedule.every if every is None else every
        defaults = {"lr": lr, "eps": eps, "initial": initial}
        super().__init__(params, levels, chosen, defaults, codec, small_bytes)

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        self.exchange(bucket, "both", self.program("parameters"), 2 * bucket.elements)
        bucket.values["squares"] = torch.full_like(x, group["initial"])
        bucket.values["local_squares"] = torch.full_like(x, group["initial"])

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        squares, local = bucket.values["squares"], bucket.values["local_squares"]
        since = bucket.step % self.every + 1
        x.sub_(gradient / (squares + since * group["eps"] ** 2).sqrt(), alpha=group["lr"])
        local.addcmul_(gradient, gradient)
        if since == self.every:
            mean = bucket.exchanges["both"].all_reduce(torch.cat([x, local]))
            x.copy_(mean[: bucket.elements])
            local.copy_(mean[bucket.elements :])
            squares.copy_(local)
