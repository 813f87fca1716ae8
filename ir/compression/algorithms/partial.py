"""Weights that a few ranks average, the first that are ready."""

from __future__ import annotations

from ..program import CompressionAlgorithm, CompressionProgram, ExchangeSchedule
from .building_blocks import plain_all_reduce

PARTIAL_REDUCE = CompressionAlgorithm(
    "partial-reduce",
    "Partial Reduce, SIGMOD 2021",
    (
        CompressionProgram(
            "partial-reduce.parameters", "parameters", "all_reduce", plain_all_reduce()
        ),
    ),
    ExchangeSchedule(ready=2),
    optimizer="PartialReduce",
    vectors=1,
    settings=("ready", "seed"),
)
ALGORITHMS = (PARTIAL_REDUCE,)
