"""Any element-wise torch optimizer on compressed gradients: whole, or in shards of a flat vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ....ir.compression.program import Algorithm
from ..backends.codec import Codec
from ..exchange import SMALL_BYTES
from ..work import Levels
from .flat import FlatOptimizer, Part

Base = Callable[..., torch.optim.Optimizer]


class Based(FlatOptimizer):
    """`base([flat], lr=…)` makes the optimizer of a group. It must be element-wise."""

    def __init__(
        self,
        params: Iterable[Any],
        levels: Levels,
        lr: float = 1e-3,
        base: Base = torch.optim.AdamW,
        *,
        program: Algorithm,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        self.base = base
        self.bases: list[torch.optim.Optimizer] = []
        super().__init__(params, levels, program, {"lr": lr}, codec, small_bytes)

    def own(self, group: dict[str, Any], part: Part, weights: Tensor) -> None:
        part.values["weights"] = weights
        self.bases.append(self.base([weights], lr=group["lr"]))

    def update(self, group: dict[str, Any], part: Part, gradient: Tensor) -> Tensor:
        """The weights that this rank owns after a step along `gradient`."""
        weights, optimizer = part.values["weights"], self.bases[self.parts.index(part)]
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


class Averaged(Based):
    """Gradients are all-reduced by the algorithm's program; every rank updates all weights.

    `scores` (`[size]`) is to be set before a step when the program is for `zeno`.
    """

    scores: Tensor | None = None

    def begin(self, group: dict[str, Any], part: Part, x: Tensor) -> None:
        self.exchange(part, "gradients", self.program("gradients"), part.elements)
        self.own(group, part, x.clone())

    def advance(self, group: dict[str, Any], part: Part, x: Tensor, gradient: Tensor) -> None:
        mean = part.exchanges["gradients"].all_reduce(gradient, self.scores)
        x.copy_(self.update(group, part, mean))


class Sharded(Based):
    """Gradients are reduce-scattered, every rank updates its piece, weights are gathered.

    Parameters hold what the weight program lets through; the piece itself stays in fp32.
    """

    def begin(self, group: dict[str, Any], part: Part, x: Tensor) -> None:
        size = self.levels.all.size
        columns = -(-part.elements // size)
        self.exchange(part, "gradients", self.program("gradients"), size * columns)
        weights = self.exchange(part, "weights", self.program("weights"), columns)
        rows = self._rows(part, x)
        weights.replicate(rows)
        self.own(group, part, rows[self.levels.all.index].clone())

    def advance(self, group: dict[str, Any], part: Part, x: Tensor, gradient: Tensor) -> None:
        mean = part.exchanges["gradients"].reduce_scatter(self._rows(part, gradient))
        piece = self.update(group, part, mean)
        rows = part.exchanges["weights"].all_gather(piece)
        x.copy_(rows.reshape(-1)[: part.elements])

    def _rows(self, part: Part, flat: Tensor) -> Tensor:
        """`[size, columns]`, one row per rank."""
        size = self.levels.all.size
        return pad(flat, (0, -part.elements % size)).view(size, -1)
