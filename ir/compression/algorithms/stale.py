"""Gradients that arrive a step late, so that their sums travel while the next step computes."""

from __future__ import annotations

from ..program import CompressionAlgorithm, CompressionProgram, ExchangeSchedule
from .building_blocks import plain_all_reduce

STALE_SGD = CompressionAlgorithm(
    "stale-sgd",
    "SAPipe, NeurIPS 2022",
    (CompressionProgram("stale-sgd.gradients", "gradients", "all_reduce", plain_all_reduce()),),
    ExchangeSchedule(delay=1),
    optimizer="StaleSGD",
    vectors=4,
    settings=("delay",),
)
ALGORITHMS = (STALE_SGD,)
