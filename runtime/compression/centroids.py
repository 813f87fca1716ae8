"""Centroids of rows that hash alike, in place of the rows (LSH-MoE, NeurIPS 2024).

Rows that lie on the same sides of some random planes through their mean are near each other. Of those
that choose the same expert, the mean is sent to it; a row that is alone is its own mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...ir.compression.program import CompressionProgram
from ...ir.compression.stage import Centroids
from ..comm.expert_all_to_all import CentroidRows

SEED = 0  # of the planes: they are the same on all ranks and in all steps


class RowCentroids:
    """The centroids that a program sends."""

    def __init__(self, program: CompressionProgram) -> None:
        (self.ratio,) = (s.ratio for s in program.stages if isinstance(s, Centroids))
        self.planes: dict[tuple[int, int], Tensor] = {}

    def __call__(self, x: Tensor, choice: Tensor, experts: int) -> CentroidRows:
        """Rows `[tokens, width]` that choose experts (`[tokens, choices]`) by centroid: of at most one
        in `ratio` choices, and one of every expert that is chosen."""
        flat = choice.reshape(-1)
        tokens = torch.arange(len(flat), device=x.device) // choice.shape[1]
        bits = max((len(flat) // (experts * self.ratio)).bit_length() - 1, 0)
        sides = (x - x.mean(0)) @ self.normals(x.shape[1], bits).to(x) > 0
        codes = (sides << torch.arange(bits, device=x.device)).sum(1)
        keys, place, counts = torch.unique(
            (flat << bits) + codes[tokens], return_inverse=True, return_counts=True
        )
        wide = torch.promote_types(x.dtype, torch.float32)
        totals = torch.zeros(len(keys), x.shape[1], dtype=wide, device=x.device)
        totals.index_add_(0, place, x[tokens].to(wide))
        rows = (totals / counts.unsqueeze(1)).to(x.dtype)
        return CentroidRows(rows, (keys >> bits).unsqueeze(1), tokens, place, counts)

    def normals(self, width: int, bits: int) -> Tensor:
        """Normals of the planes, `[width, bits]`."""
        if (width, bits) not in self.planes:
            generator = torch.Generator().manual_seed(SEED)
            self.planes[width, bits] = torch.randn(bits, width, generator=generator).T
        return self.planes[width, bits]
