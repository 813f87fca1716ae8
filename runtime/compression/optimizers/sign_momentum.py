"""Local steps of any optimizer, then one global step along the sign of a momentum.

The movement of all ranks is averaged in shards; the signs of a shard's momentum are all that others
need, so the way back takes one bit per element and loses nothing.

Source: Yu et al., Distributed sign momentum with local steps, arXiv 2411.17866.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ....ir.compression.program import Algorithm
from ....ir.compression.registry import algorithm
from ..backends.codec import Codec
from ..exchange import SMALL_BYTES
from ..work import Levels
from .based import Base, Based
from .flat import Part


class SignMomentum(Based):
    """`base([flat], lr=…)` makes the local optimizer of a group.

    `rate` multiplies the learning rate in the global step, which is taken every `every` steps.
    """

    def __init__(
        self,
        params: Iterable[Any],
        levels: Levels,
        lr: float = 1e-3,
        base: Base = torch.optim.AdamW,
        betas: tuple[float, float] = (0.95, 0.98),
        weight_decay: float = 0.1,
        rate: float = 1.0,
        every: int | None = None,
        *,
        program: Algorithm | None = None,
        codec: Codec | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        chosen = program or algorithm("sign-momentum")
        self.every = chosen.schedule.every if every is None else every
        self.betas, self.weight_decay, self.rate = betas, weight_decay, rate
        super().__init__(
            params, levels, lr, base, program=chosen, codec=codec, small_bytes=small_bytes
        )

    def begin(self, group: dict[str, Any], part: Part, x: Tensor) -> None:
        size = self.levels.all.size
        columns = -(-part.elements // size)
        self.exchange(part, "movement", self.program("parameters"), columns * size)
        self.exchange(part, "signs", self.program("weights"), columns)
        part.values["start"] = x.clone()
        part.values["momentum"] = torch.zeros(columns)
        self.own(group, part, x.clone())

    def advance(self, group: dict[str, Any], part: Part, x: Tensor, gradient: Tensor) -> None:
        x.copy_(self.update(group, part, gradient))
        if (part.step + 1) % self.every == 0:
            x.copy_(self._global(group, part, x))
            part.values["weights"].copy_(x)

    def _global(self, group: dict[str, Any], part: Part, x: Tensor) -> Tensor:
        weights, momentum = part.values["start"], part.values["momentum"]
        beta1, beta2 = self.betas
        size, columns = self.levels.all.size, momentum.numel()
        moved = pad(weights - x, (0, size * columns - part.elements)).view(size, columns)
        mean = part.exchanges["movement"].reduce_scatter(moved) / group["lr"]
        direction = torch.lerp(mean, momentum, beta1)
        momentum.copy_(torch.lerp(mean, momentum, beta2))
        signs = part.exchanges["signs"].all_gather(direction).reshape(-1)[: part.elements].sign()
        weights.sub_(signs + self.weight_decay * weights, alpha=self.rate * group["lr"])
        return weights
