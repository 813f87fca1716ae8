"""Partial Reduce: momentum SGD on local weights, averaged after each step by a few ranks alone.

    step t of a rank      weights move by its own gradient │ group of the first ready ranks │ their mean

No rank waits for the slowest one. Source: Miao et al., heterogeneity-aware distributed machine learning
training via partial reduce, SIGMOD 2021 (constant weights).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ....ir.compression.program import CompressionAlgorithm
from ....ir.compression.registry import algorithm
from ...comm.group_hierarchy import GroupHierarchy
from ...comm.monitor import Store
from ...torch_private import default_store
from ..backends.codec import Codec
from ..exchange import SMALL_BYTES
from ..ready_ranks import Members, ReadyRanks, SeededRanks
from .flat import FlatBucket, FlatOptimizer


class PartialReduce(FlatOptimizer):
    """Ranks that are ready meet in a `store`, that of torch.distributed by default; with a seed in the
    algorithm's schedule groups do not depend on time. Every rank has weights of its own."""

    def __init__(
        self,
        params: Iterable[Any],
        levels: GroupHierarchy,
        lr: float = 0.1,
        momentum: float = 0.9,
        *,
        program: CompressionAlgorithm | None = None,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
        store: Store | None = None,
    ) -> None:
        chosen, rank = program or algorithm("partial-reduce"), levels.all.index
        size, ranks, seed = chosen.schedule.ready, levels.all.size, chosen.schedule.seed
        self.ready: ReadyRanks | SeededRanks = SeededRanks(seed, size, ranks, rank)
        if not seed and ranks > 1:
            shared: Store = store or default_store()
            number = shared.add(f"partial reduce/opened by {rank}", 1)
            self.ready = ReadyRanks(shared, f"partial reduce/{number}", size, ranks, rank)
        super().__init__(
            params, levels, chosen, {"lr": lr, "momentum": momentum}, codec, small_bytes
        )

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        bucket.values["momentum"] = torch.zeros_like(x)

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        momentum = bucket.values["momentum"]
        momentum.mul_(group["momentum"]).add_(gradient)
        x.add_(momentum, alpha=-group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        number = self.buckets[0].step
        loss = super().step(closure)
        if self.levels.all.size > 1:
            members = self.ready.members(number)
            for bucket in self.buckets:
                bucket.write(self.mean_of(bucket.read(), members))
        return loss

    def mean_of(self, x: Tensor, members: Members) -> Tensor:
        """The mean of the members' `x` (`[elements]`), of which each averages a part."""
        size, group = len(members), self.levels.all
        if size == 1:
            return x
        rows = pad(x, (0, -len(x) % size)).view(size, -1)
        mean = group.exchange_among(members, rows).sum(0) / size
        return group.exchange_among(members, mean.expand_as(rows)).reshape(-1)[: len(x)]
