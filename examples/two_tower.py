"""Two encoders that meet only in the loss, in plain PyTorch: `examples/two_tower.py:make`.

Queries and documents share the embedding of their words; each side has layers of its own, and the
loss picks every query's document among all of the batch.
"""

import torch
from torch import nn
from torch.nn import functional


class Tower(nn.Module):
    """Words `[batch, words]` to unit vectors `[batch, width]`."""

    def __init__(self, embedding: nn.Embedding, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, nhead=4, dim_feedforward=2 * width, dropout=0.0, batch_first=True
            )
            for _ in range(layers)
        )
        self.out = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return functional.normalize(self.out(x.mean(1)), dim=1)


class TwoTower(nn.Module):
    """The contrastive loss of queries and their documents."""

    def __init__(self, tokens: int = 200, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        embedding = nn.Embedding(tokens, width)
        self.query, self.document = (Tower(embedding, width, layers) for _ in range(2))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, query: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
        scores = self.scale.exp() * self.query(query) @ self.document(document).T
        return functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def make() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """(model, global batch of 8 pairs)."""
    batch = {"query": torch.randint(0, 200, (8, 12)), "document": torch.randint(0, 200, (8, 24))}
    return TwoTower().train(), batch
