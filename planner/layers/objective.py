"""What a step takes, from what the stages take: functions of arrays that broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Amount = float | NDArray[np.float64]


class Objective(Protocol):
    """Seconds of a step from seconds of every stage, for one micro-batch.

    `floor` grows with every argument and is nowhere above `step`: it prunes. A search looks only at
    stages that no other way of running them beats in both seconds.
    """

    def step(
        self, seconds: Sequence[Amount], synchronised: Sequence[Amount], micro_batches: int
    ) -> Amount: ...

    def floor(
        self, seconds: Sequence[Amount], synchronised: Sequence[Amount], micro_batches: int
    ) -> Amount: ...


class OneForwardOneBackward:
    """Every stage once, the slowest again for every further micro-batch, and the most that
    synchronisation adds to a stage's last one."""

    def step(
        self, seconds: Sequence[Amount], synchronised: Sequence[Amount], micro_batches: int
    ) -> Amount:
        added = [np.maximum(0.0, s - t) for t, s in zip(seconds, synchronised, strict=True)]
        again = (micro_batches - 1) * reduce(np.maximum, seconds)
        return sum(seconds) + again + reduce(np.maximum, added)

    floor = step
