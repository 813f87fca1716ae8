"""A recommender after DLRM (Naumov et al. 2019), in plain PyTorch: `examples/dlrm.py:make`.

Dense features go through an MLP, categories look bags of rows up in tables, and a second MLP reads the
products of all pairs. Tables have sparse gradients, of the rows that a batch reads, and `optimizer`
moves those rows alone. With every table split by rows over 4 devices, and the MLPs replicated:

    plait plan examples/dlrm.py:make --cluster local:4 --pin '*:dp=4' --pin 'tables.*:tp=4'
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS = (600, 400, 200)  # of the tables
FEWEST_ROWS = 100  # of a table: the MLPs' weights have fewer


class Dlrm(nn.Module):
    """Clicks from dense features `[batch, 6]` and categories `[batch, tables, bag]`."""

    def __init__(self, rows: tuple[int, ...] = ROWS, width: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(count, width, mode="sum", sparse=True) for count in rows
        )
        self.bottom = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, width), nn.ReLU())
        pairs = len(rows) * (len(rows) + 1) // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: Tensor, categories: Tensor, clicks: Tensor) -> Tensor:
        low = self.bottom(dense)
        bags = [table(categories[:, i]) for i, table in enumerate(self.tables)]
        vectors = torch.stack([low, *bags], 1)
        rows, columns = torch.triu_indices(vectors.shape[1], vectors.shape[1], 1)
        pairs = (vectors @ vectors.transpose(1, 2))[:, rows, columns]
        logits = self.top(torch.cat([low, pairs], 1)).squeeze(1)
        return functional.binary_cross_entropy_with_logits(logits, clicks)


class RowAdam(torch.optim.Optimizer):
    """SparseAdam for tables, Adam for what is left."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 1e-2) -> None:
        super().__init__(parameters, {"lr": lr})
        everything = self.param_groups[0]["params"]
        tables = [p for p in everything if p.shape[0] >= FEWEST_ROWS]
        others = [p for p in everything if p.shape[0] < FEWEST_ROWS]
        self.of_tables = torch.optim.SparseAdam(tables, lr=lr)
        self.of_others = torch.optim.Adam(others, lr=lr)

    def step(self, closure: Any = None) -> Any:
        self.of_tables.step()
        self.of_others.step()


def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return RowAdam(parameters)


def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """(model, global batch of 16 samples with bags of 3)."""
    dense, clicks = torch.randn(16, 6), torch.rand(16).round()
    drawn = torch.rand(16, len(ROWS), 3) ** 3  # some categories are much more frequent than others
    categories = (drawn * torch.tensor(ROWS)[:, None]).long()
    return Dlrm().train(), (dense, categories, clicks)
