"""1-bit Adam: Adam until its variance settles, then momenta of one bit under a frozen variance.

Source: Tang et al., 1-bit Adam, ICML 2021.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ....ir.compression.program import CompressionAlgorithm
from ....ir.compression.registry import algorithm
from ....ir.compression.variants import with_decay
from ...comm.group_hierarchy import GroupHierarchy
from ..backends.codec import Codec
from ..exchange import SMALL_BYTES
from .flat import FlatBucket, FlatOptimizer

SETTLED = 0.96  # how much of the variance's norm must have been there 1 / (1 - beta2) steps ago


class OneBitAdam(FlatOptimizer):
    """`warmup` steps are Adam; by default the algorithm's. `settles`: the freeze rule ends it earlier.

    Without `bias_correction` momenta and variances stand as they are after the freeze, as in the paper
    and in DeepSpeed; a freeze long before 1 / (1 - beta2) steps then makes steps longer.
    Elements whose variance is zero when it is frozen do not move: one bit cannot say zero.
    """

    def __init__(
        self,
        params: Iterable[Any],
        levels: GroupHierarchy,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup: int | None = None,
        settles: bool = False,
        bias_correction: bool = True,
        *,
        program: CompressionAlgorithm | None = None,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        chosen = program or algorithm("1-bit-adam")
        self.warmup = chosen.schedule.warmup if warmup is None else warmup
        self.settles, self.bias_correction = settles, bias_correction
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, levels, chosen, defaults, codec, small_bytes)

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        program = with_decay(self.program("momentum"), group["betas"][0])
        momentum = self.exchange(bucket, "momentum", program, bucket.elements)
        bucket.values["variance"] = torch.zeros_like(x)
        bucket.values["frozen_at"] = torch.zeros(())
        bucket.values["norms"] = torch.zeros(round(1 / (1 - group["betas"][1])))
        assert "momentum" in momentum.states

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        exchange, variance = bucket.exchanges["momentum"], bucket.values["variance"]
        momentum = exchange.states["momentum"][: bucket.elements]
        beta1, beta2 = group["betas"]
        count = bucket.step + 1
        if bucket.values["frozen_at"] == 0:
            mean = self.mean(gradient)
            momentum.lerp_(mean, 1 - beta1)
            variance.mul_(beta2).addcmul_(mean, mean, value=1 - beta2)
            if count >= self.warmup or (self.settles and _settled(bucket)):
                bucket.values["frozen_at"].fill_(count)
        else:
            momentum.copy_(exchange.all_reduce(gradient))
        frozen_at = int(bucket.values["frozen_at"])
        first, second = 1 - beta1**count, 1 - beta2 ** (frozen_at or count)
        if 0 < frozen_at < count and not self.bias_correction:
            first = second = 1.0
        root = (variance / second).sqrt() + group["eps"]
        update = torch.where(variance > 0, momentum / first / root, 0.0)
        x.sub_(update + group["weight_decay"] * x, alpha=group["lr"])


def _settled(bucket: FlatBucket) -> bool:
    """The variance's norm against that of 1 / (1 - beta2) steps ago."""
    norms = bucket.values["norms"]
    place, now = bucket.step % norms.numel(), bucket.values["variance"].abs().sum()
    before = float(norms[place])
    norms[place] = now
    return before > 0 and before / float(now) >= SETTLED
