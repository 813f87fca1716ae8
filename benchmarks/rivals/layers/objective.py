"""Seconds of a step from seconds of its stages, as functions of arrays that broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Amount = float | NDArray[np.float64]


class Objective(Protocol):
    """Seconds of a step from every stage's seconds for one micro-batch.

    `lower_bound` grows with every argument and is nowhere above `step`: it prunes. A search only
    considers choices of a stage that no other beats in both seconds.
    """

    def step(
        self, seconds: Sequence[Amount], synchronised: Sequence[Amount], micro_batches: int
    ) -> Amount: ...

    def lower_bound(
        self, seconds: Sequence[Amount], synchronised: Sequence[Amount], micro_batches: int
    ) -> Amount: ...


class OneForwardOneBackward:
    """1F1B: every stage once, the slowest again for every further micro-batch, and the largest
    time that gradient synchronisation adds to a stage's last micro-batch.
    """

    def step(
        self, seconds: Sequence[Amount], synchronised: Sequence[Amount], micro_batches: int
    ) -> Amount:
        added = [np.maximum(0.0, s - t) for t, s in zip(seconds, synchronised, strict=True)]
        again = (micro_batches - 1) * reduce(np.maximum, seconds)
        return sum(seconds) + again + reduce(np.maximum, added)

    lower_bound = step
