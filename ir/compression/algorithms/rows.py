"""Rows that go to the ranks of their experts: of those that are nearly equal, one."""

from __future__ import annotations

from ..program import CompressionAlgorithm, CompressionProgram
from ..stage import AddDifference, Centroids, ExchangeRows

ALGORITHMS = (
    CompressionAlgorithm(
        "lsh-moe",
        "LSH-MoE: communication-efficient MoE training via locality-sensitive hashing, NeurIPS 2024",
        (
            CompressionProgram(
                "lsh-moe.rows",
                "rows",
                "exchange_rows",
                (Centroids(5), ExchangeRows(), AddDifference()),
                accepts_bias="experts see means, and what rows differ by passes them by",
            ),
        ),
        optimizer="",
        settings=("rate",),
    ),
)
