"""Momentum SGD whose summed gradients arrive a step late: they travel beside the next step's compute.

    step t     gradient t starts on its way │ sum of gradient t - 1 arrives, weights move by it
    step t+1                                │ sum of gradient t arrives …

Source: Chen et al., SAPipe: staleness-aware pipeline for data parallel training, NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from ....ir.compression.program import CompressionAlgorithm
from ....ir.compression.registry import algorithm
from ....ir.errors import UsageError
from ...comm.group_hierarchy import GroupHierarchy
from ...comm.transfer import Arriving
from ..backends.codec import Codec
from ..exchange import SMALL_BYTES
from .flat import FlatBucket, FlatOptimizer

Compensation = Literal["prediction", "curvature", "none"]
COMPENSATIONS: tuple[Compensation, ...] = ("prediction", "curvature", "none")


class StaleSGD(FlatOptimizer):
    """With a `delay` of 0 it is torch's SGD, bit for bit; with 1 the first step moves nothing.

    `compensate` for what is late: with `prediction` the next gradient is taken where this rank's own
    one would lead; with `curvature` what arrives is moved to the present weights, g + strength g² (now
    - then). Parameters hold predicted weights between steps; `weights()` gives those to keep.
    """

    def __init__(
        self,
        params: Iterable[Any],
        levels: GroupHierarchy,
        lr: float = 0.1,
        momentum: float = 0.9,
        compensate: Compensation = "prediction",
        strength: float = 1.0,
        *,
        program: CompressionAlgorithm | None = None,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        if compensate not in COMPENSATIONS:
            raise UsageError(f"compensate={compensate!r}: one of {', '.join(COMPENSATIONS)}")
        chosen = program or algorithm("stale-sgd")
        self.delay = chosen.schedule.delay
        self.compensate, self.strength = compensate, strength
        self.in_flight: dict[FlatBucket, Arriving] = {}
        self.places: dict[Tensor, tuple[FlatBucket, int]] = {}
        super().__init__(
            params, levels, chosen, {"lr": lr, "momentum": momentum}, codec, small_bytes
        )

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        bucket.values["weights"] = x.clone()
        bucket.values["momentum"] = torch.zeros_like(x)
        if self.delay:
            bucket.values["late"] = torch.zeros_like(x)  # this rank's part of what is under way
        start = 0
        for parameter, size in zip(bucket.parameters, bucket.sizes, strict=True):
            self.places[parameter] = bucket, start
            start += size

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        arriving = self.levels.all.start_all_reduce(gradient)
        if self.delay:
            before = self._in_flight(bucket)
            self.in_flight[bucket] = arriving
            bucket.values["late"].copy_(gradient)
            if before is None:
                return
            arriving = before
        self._move(group, bucket, arriving.wait() / self.levels.all.size)
        x.copy_(bucket.values["weights"])
        if self.delay and self.compensate == "prediction":
            predicted = group["momentum"] * bucket.values["momentum"] + gradient
            x.sub_(predicted, alpha=group["lr"])

    def _in_flight(self, bucket: FlatBucket) -> Arriving | None:
        """The sum that the last step has started, started anew after states were loaded; None in the
        first step."""
        if bucket.step and bucket not in self.in_flight:
            return self.levels.all.start_all_reduce(bucket.values["late"].clone())
        return self.in_flight.pop(bucket, None)

    def _move(self, group: dict[str, Any], bucket: FlatBucket, mean: Tensor) -> None:
        """Move the weights along a mean gradient, as torch.optim.SGD does."""
        momentum, weights = bucket.values["momentum"], bucket.values["weights"]
        if self.delay and self.compensate == "curvature":
            moved = momentum * -group["lr"]  # now - then
            mean = mean + self.strength * mean * mean * moved
        momentum.mul_(group["momentum"]).add_(mean)
        weights.add_(momentum, alpha=-group["lr"])

    def states_loaded(self) -> None:
        for arriving in self.in_flight.values():
            arriving.wait()
        self.in_flight.clear()

    def exact_weights(self, parameter: Tensor) -> Tensor:
        bucket, start = self.places[parameter]
        return bucket.values["weights"].narrow(0, start, parameter.numel()).view_as(parameter)

    def weights(self) -> list[Tensor]:
        """The weights themselves, one tensor per parameter: what to evaluate and to save."""
        return [
            self.exact_weights(p).clone() for group in self.param_groups for p in group["params"]
        ]
