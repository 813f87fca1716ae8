"""Momentum SGD with error feedback whose gradients are computed at weights less the local error.

Sources: Xu et al., Step-ahead error feedback, AAAI 2021 (`shift` 1, errors averaged);
Xu and Huang, Detached error feedback, arXiv 2004.05298 (`shift` below 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ....ir.compression.program import CompressionAlgorithm
from ....ir.compression.registry import algorithm
from ...comm.group_hierarchy import GroupHierarchy
from ..backends.codec import Codec
from ..exchange import SMALL_BYTES
from .flat import FlatBucket, FlatOptimizer, rescale_errors


class ShiftedSGD(FlatOptimizer):
    """Parameters hold `weights - shift * lr * error` between steps; `weights()` gives those to keep.

    With `shift` 0 it is plain error feedback. Errors are averaged every `every` steps, 0: never.
    Errors are in units of gradients, so a new learning rate rescales them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        levels: GroupHierarchy,
        lr: float = 0.1,
        momentum: float = 0.9,
        shift: float = 1.0,
        every: int = 0,
        *,
        program: CompressionAlgorithm | None = None,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        self.every = every
        self.places: dict[
            Tensor, tuple[FlatBucket, int]
        ] = {}  # of parameters, in the flat weights of a bucket
        defaults = {"lr": lr, "momentum": momentum, "shift": shift}
        chosen = program or algorithm("step-ahead")
        super().__init__(params, levels, chosen, defaults, codec, small_bytes)

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        self.exchange(bucket, "gradients", self.program("gradients"), bucket.elements)
        bucket.values["weights"] = x.clone()
        bucket.values["momentum"] = torch.zeros_like(x)
        bucket.values["rate"] = torch.tensor(group["lr"])
        starts = accumulate(bucket.sizes, initial=0)
        self.places.update(
            (p, (bucket, at)) for p, at in zip(bucket.parameters, starts, strict=False)
        )

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        exchange, weights = bucket.exchanges["gradients"], bucket.values["weights"]
        error = exchange.states.get("worker_error")
        rescale_errors(exchange, float(bucket.values["rate"]) / group["lr"])
        bucket.values["rate"].fill_(group["lr"])
        mean = exchange.all_reduce(gradient)
        bucket.values["momentum"].mul_(group["momentum"]).add_(mean)
        weights.sub_(bucket.values["momentum"], alpha=group["lr"])
        x.copy_(weights)
        if error is None:
            return
        if self.every and (bucket.step + 1) % self.every == 0:
            error.copy_(self.mean(error))
        x.sub_(error[: bucket.elements], alpha=group["shift"] * group["lr"])

    def weights(self) -> list[Tensor]:
        """The weights themselves, one tensor per parameter: what to evaluate and to save."""
        return [
            self.exact_weights(p).clone() for group in self.param_groups for p in group["params"]
        ]

    def exact_weights(self, parameter: Tensor) -> Tensor:
        bucket, start = self.places[parameter]
        return bucket.values["weights"].narrow(0, start, parameter.numel()).view_as(parameter)
