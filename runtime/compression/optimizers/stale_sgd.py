"""Momentum SGD whose summed gradients arrive steps late: they travel beside compute.

    delay 1    step t      gradient t starts on its way; the sum of t - 1 arrives, weights move by it
    delay K    step t      gradient t starts on its way; the sum of t - K arrives, weights move by it

Source: Chen et al., SAPipe: staleness-aware pipeline for data parallel training, NeurIPS 2022.
"""

from __future__ import annotations

from collections import deque
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
    """With a `delay` of 0 it is torch's SGD, bit for bit; with K the first K steps move nothing.

    `compensate` for what is late: with `prediction` the next gradient is taken where this rank's own
    ones that are under way would lead; with `curvature`, for a delay of 1, what arrives is moved to the
    present weights, g + strength g² (now - then). Parameters hold predicted weights between steps;
    `weights()` gives those to keep.
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
        if compensate == "curvature" and self.delay > 1:
            raise UsageError(f"compensate='curvature' is for a delay of 1, not {self.delay}")
        self.compensate, self.strength = compensate, strength
        self.in_flight: dict[FlatBucket, deque[Arriving]] = {}  # oldest first
        self.places: dict[Tensor, tuple[FlatBucket, int]] = {}
        super().__init__(
            params, levels, chosen, {"lr": lr, "momentum": momentum}, codec, small_bytes
        )

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        bucket.values["weights"] = x.clone()
        bucket.values["momentum"] = torch.zeros_like(x)
        for slot in range(self.delay):  # this rank's part of what is under way
            bucket.values[_late(slot)] = torch.zeros_like(x)
        start = 0
        for parameter, size in zip(bucket.parameters, bucket.sizes, strict=True):
            self.places[parameter] = bucket, start
            start += size

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        arriving = self.levels.all.start_all_reduce(gradient)
        if self.delay:
            flying = self._in_flight(bucket)
            before = flying.popleft() if len(flying) == self.delay else None
            flying.append(arriving)
            bucket.values[_late(bucket.step % self.delay)].copy_(gradient)
            if before is None:
                return
            arriving = before
        self._move(group, bucket, arriving.wait() / self.levels.all.size)
        x.copy_(bucket.values["weights"])
        if self.delay and self.compensate == "prediction":
            momentum = bucket.values["momentum"]
            for step in range(bucket.step - self.delay + 1, bucket.step + 1):
                momentum = group["momentum"] * momentum + bucket.values[_late(step % self.delay)]
                x.sub_(momentum, alpha=group["lr"])

    def _in_flight(self, bucket: FlatBucket) -> deque[Arriving]:
        """The sums that the last steps have started; started anew after states were loaded."""
        if bucket not in self.in_flight:
            first = max(0, bucket.step - self.delay)
            self.in_flight[bucket] = deque(
                self.levels.all.start_all_reduce(bucket.values[_late(step % self.delay)].clone())
                for step in range(first, bucket.step)
            )
        return self.in_flight[bucket]

    def _move(self, group: dict[str, Any], bucket: FlatBucket, mean: Tensor) -> None:
        """Move the weights along a mean gradient, as torch.optim.SGD does."""
        momentum, weights = bucket.values["momentum"], bucket.values["weights"]
        if self.delay and self.compensate == "curvature":
            moved = momentum * -group["lr"]  # now - then
            mean = mean + self.strength * mean * mean * moved
        momentum.mul_(group["momentum"]).add_(mean)
        weights.add_(momentum, alpha=-group["lr"])

    def states_loaded(self) -> None:
        for flying in self.in_flight.values():
            for arriving in flying:
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


def _late(slot: int) -> str:
    """The state with a rank's gradient under way, one of as many as the delay."""
    return f"late_{slot}" if slot else "late"
