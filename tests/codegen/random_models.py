"""Random small models: branches, shared layers, operators of several results, outputs nobody reads."""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional

WIDTH, BATCH = 6, 4


class RandomModel(nn.Module):
    """A random graph over tensors `[BATCH, WIDTH]`: every node reads one or two earlier ones."""

    def __init__(self, seed: int, dropout: bool = False) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.linears = nn.ModuleList(
            nn.Linear(WIDTH, WIDTH, bias=rng.random() < 0.5) for _ in range(3)
        )
        self.linears[2].weight = self.linears[0].weight  # one tensor under two names
        self.norms = nn.ModuleList((nn.BatchNorm1d(WIDTH), nn.LayerNorm(WIDTH)))
        self.frozen = nn.Parameter(torch.randn(WIDTH), requires_grad=False)
        self.unread = nn.Parameter(torch.randn(3))
        self.table = nn.Embedding(5, WIDTH)
        kinds = [
            "linear",
            "linear",
            "norm",
            "add",
            "mul",
            "chunk",
            "max",
            "moments",
            "sort",
            "turn",
            "frozen",
            "rows",
            "join",
            "mask",
            "empty",
        ]
        kinds += ["dropout"] * (2 * dropout)
        self.recipe = [
            (rng.choice(kinds), rng.randrange(i + 1), rng.randrange(i + 1), rng.randrange(6))
            for i in range(rng.randrange(4, 12))
        ]
        self.last = [rng.randrange(len(self.recipe) + 1) for _ in range(2)] + [len(self.recipe)]

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        made = [x]
        for kind, one, other, number in self.recipe:
            made.append(self.node(kind, made[one], made[other], number, index))
        total = self.linears[1](sum(made[place] for place in self.last))
        return functional.mse_loss(total, x.roll(1, 0))

    def node(
        self, kind: str, a: torch.Tensor, b: torch.Tensor, number: int, index: torch.Tensor
    ) -> torch.Tensor:
        if kind == "linear":
            return self.linears[number % 3](a)
        if kind == "norm":
            return self.norms[number % 2](a)
        if kind == "chunk":  # three views, one of them unread
            first, second, _ = torch.chunk(a, 3, 1)
            return torch.cat([first * b[:, :2], second, b[:, 2:4]], 1)
        if kind == "max":
            values, places = torch.max(a, 1, keepdim=True)
            return b + values * (places + 1)
        if kind == "moments":
            variance, mean = torch.var_mean(a, 0)
            return (b - mean) / (1 + variance)
        if kind == "sort":
            return torch.sort(a, 1).values - b
        if kind == "turn":
            return (a.T @ b).T[:BATCH].contiguous() / WIDTH
        if kind == "frozen":
            return torch.tanh(a) * self.frozen + b
        if kind == "rows":
            return a + self.table(index)
        if kind == "mask":
            return torch.where(a > 0, b, a)
        if kind == "empty":  # a tensor without elements on its way
            return b + torch.tanh(a[:0]).sum(0)
        if kind == "join":
            return torch.stack([a, b]).mean(0)
        if kind == "dropout":
            return functional.dropout(a, 0.3, training=True)
        return torch.sigmoid(a) + b if kind == "add" else torch.tanh(a) * b


def make(seed: int, dropout: bool = False) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, WIDTH, generator=generator)
    index = torch.randint(0, 5, (BATCH,), generator=generator)
    return RandomModel(seed, dropout).train(), {"x": x, "index": index}
