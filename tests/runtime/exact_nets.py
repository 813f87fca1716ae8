"""What the modules of `exact_cases` and `exact_modules` have in common: a small residual network."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, CLASSES, SAMPLES = 16, 11, 8
D = torch.float64


class Block(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH)
        self.down, self.change = nn.Linear(4 * WIDTH, WIDTH), change

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.up(self.norm(x)))
        return x + self.down(h if self.change is None else self.change(h))


class Net(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(Block(change) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def hidden(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.hidden(x)), y)


class Scores(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.hidden(x))
