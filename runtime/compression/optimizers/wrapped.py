"""Any element-wise torch optimizer on compressed gradients: replicated, or sharded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ....ir.compression.program import CompressionAlgorithm
from ...comm.group_hierarchy import GroupHierarchy
from ..backends.codec import Codec
from ..exchange import SMALL_BYTES
from ..score import zeno_scores
from .flat import FlatBucket, FlatOptimizer

Base = Callable[..., torch.optim.Optimizer]


class WrappedOptimizer(FlatOptimizer):
    """`base([flat], lr=…)` creates the optimizer of a group. It must be element-wise."""

    def __init__(
        self,
        params: Iterable[Any],
        levels: GroupHierarchy,
        lr: float = 1e-3,
        base: Base = torch.optim.AdamW,
        *,
        program: CompressionAlgorithm,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        self.base = base
        self.bases: list[torch.optim.Optimizer] = []
        super().__init__(params, levels, program, {"lr": lr}, codec, small_bytes)

    def create_base(self, group: dict[str, Any], bucket: FlatBucket, weights: Tensor) -> None:
        bucket.values["weights"] = weights
        self.bases.append(self.base([weights], lr=group["lr"]))

    def update(self, group: dict[str, Any], bucket: FlatBucket, gradient: Tensor) -> Tensor:
        """The weights that this rank owns after a step along `gradient`."""
        weights, optimizer = bucket.values["weights"], self.bases[self.buckets.index(bucket)]
        optimizer.param_groups[0]["lr"] = group["lr"]
        weights.grad = gradient
        optimizer.step()
        return weights

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "bases": [base.state_dict() for base in self.bases]}

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        for base, saved in zip(self.bases, state_dict["bases"], strict=True):
            base.load_state_dict(saved)


class Averaged(WrappedOptimizer):
    """Gradients are all-reduced by the algorithm's program; every rank updates all weights.

    For `zeno`, `validate` gives the loss of the model as it is on validation data of this rank, or
    `scores` (`[size]`) are set before a step. `penalty`: what the length of an update costs.
    """

    scores: Tensor | None = None
    validate: Callable[[], float] | None = None
    penalty = 1e-4

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        self.exchange(bucket, "gradients", self.program("gradients"), bucket.elements)
        self.create_base(group, bucket, x.clone())

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        scores = self.scores
        if self.validate is not None and scores is None and self.algorithm.scores:
            scores = self._scores(group, bucket, x, gradient)
        mean = bucket.exchanges["gradients"].all_reduce(gradient, scores)
        x.copy_(self.update(group, bucket, mean))

    def _scores(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> Tensor:
        """Zeno's scores of all ranks' gradients; parameters are as they were afterwards."""
        assert self.validate is not None
        validate = self.validate

        def loss_after(update: Tensor) -> float:
            bucket.write(x - group["lr"] * update)
            return validate()

        scores = zeno_scores(self.levels.all, gradient, loss_after, self.penalty)
        bucket.write(x)
        return scores


class Sharded(WrappedOptimizer):
    """Gradients are reduce-scattered, every rank updates its shard, weights are gathered.

    Parameters hold the compressed weights; the shard itself stays in fp32.
    """

    def begin(self, group: dict[str, Any], bucket: FlatBucket, x: Tensor) -> None:
        size = self.levels.all.size
        columns = -(-bucket.elements // size)
        self.exchange(bucket, "gradients", self.program("gradients"), size * columns)
        weights = self.exchange(bucket, "weights", self.program("weights"), columns)
        rows = self._rows(bucket, x)
        weights.replicate(rows)
        self.create_base(group, bucket, rows[self.levels.all.index].clone())

    def advance(
        self, group: dict[str, Any], bucket: FlatBucket, x: Tensor, gradient: Tensor
    ) -> None:
        mean = bucket.exchanges["gradients"].reduce_scatter(self._rows(bucket, gradient))
        shard = self.update(group, bucket, mean)
        rows = bucket.exchanges["weights"].all_gather(shard)
        x.copy_(rows.reshape(-1)[: bucket.elements])

    def _rows(self, bucket: FlatBucket, flat: Tensor) -> Tensor:
        """`[size, columns]`, one row per rank."""
        size = self.levels.all.size
        return pad(flat, (0, -bucket.elements % size)).view(size, -1)
