"""Chains split into consecutive stages at the least total cost, for many problems at once.

A cost may depend on how many stages follow (a pipeline keeps activations for each of them), so
stages are added from the end of the chain:

    first ──────────── last ───────────────────────────── n
      cost[first, last - 1] │ best split of the rest

Costs have shape [..., first, last - 1], inf where there is no such stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.floating[Any]]


class ChainPartitions(msgspec.Struct, frozen=True):
    """Best splits of every suffix of a chain into 1, 2, ... stages.

    least: by stages - 1, total cost, shape [..., first]
    last: by stages - 1, where the first of these stages ends, shape [..., first]
    """

    least: tuple[Reals, ...]
    last: tuple[NDArray[np.intp], ...]

    def totals(self, stages: int) -> Reals:
        """Least cost of the whole chain in this many stages, inf where there is no such split."""
        return self.least[stages - 1][..., 0]

    def bounds(self, stages: int, problem: tuple[int, ...]) -> tuple[int, ...]:
        """First item of every stage of the best split of one problem, and the chain's length."""
        return (0, *self._ends(stages, problem))

    def _ends(self, stages: int, problem: tuple[int, ...]) -> Iterator[int]:
        first = 0
        for after in reversed(range(stages)):
            first = int(self.last[after][(*problem, first)])
            yield first


def one_stage(cost: Reals) -> ChainPartitions:
    """Suffixes as one stage each, at the costs of stages with none after."""
    return ChainPartitions((cost[..., -1],), (np.full(cost.shape[:-1], cost.shape[-1], np.intp),))


def with_one_more(splits: ChainPartitions, cost: Reals) -> ChainPartitions:
    """The splits extended to one more stage, in front, at these costs."""
    rest = np.full((*cost.shape[:-2], 1, cost.shape[-1]), np.inf, cost.dtype)
    rest[..., 0, :-1] = splits.least[-1][..., 1:]
    whole = cost + rest
    last = whole.argmin(axis=-1)
    least = np.take_along_axis(whole, last[..., None], -1)[..., 0]
    return ChainPartitions((*splits.least, least), (*splits.last, last + 1))
