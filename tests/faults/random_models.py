"""Models that nobody has in mind: random sizes and parts, odd ones among them."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two maps, with what a seed chooses around and between them, added to their input."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        inner = rng.choice((width, width + 2, 3 * width, 4 * width))
        bias = rng.random() < 0.5
        self.up, self.down = nn.Linear(width, inner, bias), nn.Linear(inner, width, bias)
        self.norm = nn.LayerNorm(width) if rng.random() < 0.7 else nn.Identity()
        self.drop = nn.Dropout(rng.choice((0.0, 0.1)))
        self.activation = rng.choice(
            (functional.gelu, functional.relu, functional.silu, torch.tanh)
        )
        self.gate = nn.Linear(width, inner) if rng.random() < 0.3 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        inner = self.activation(self.up(y))
        if self.gate is not None:
            inner = inner * self.gate(y)
        return x + self.drop(self.down(inner))


class Attention(nn.Module):
    """Attention over the tokens, added to its input: causal or not, with dropout or without."""

    def __init__(self, width: int, rng: random.Random) -> None:
        super().__init__()
        self.heads = rng.choice([n for n in (1, 2, 3) if width % n == 0])
        self.causal, self.dropout = rng.random() < 0.5, rng.choice((0.0, 0.1))
        self.inputs, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(
            *parts, dropout_p=self.dropout, is_causal=self.causal
        )
        return x + self.out(y.transpose(1, 2).flatten(2))


class Network(nn.Module):
    """Tokens to tokens: an embedding, perhaps a convolution, blocks with attention or without, and a
    head that may be tied."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        width = rng.choice((16, 24, 34, 48, 66, 33))
        vocabulary = rng.choice((50, 96, 770, 3000, 6002, 771, 5003))
        self.tokens = nn.Embedding(vocabulary, width)
        convolved = rng.random() < 0.3
        self.convolution = nn.Conv1d(width, width, 3, padding=1) if convolved else None
        attends = rng.random() < 0.5
        blocks = [
            nn.Sequential(Attention(width, rng), Block(width, rng))
            if attends
            else Block(width, rng)
            for _ in range(rng.randint(1, 4))
        ]
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(width, vocabulary, bias=rng.random() < 0.3)
        if rng.random() < 0.4:
            self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        x = self.tokens(input_ids)
        if self.convolution is not None:
            x = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return functional.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def build(seed: int, batch: int = 8) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model of a seed in training mode, and a global batch."""
    rng = random.Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Network(rng)
        shape = (batch, rng.choice((6, 12, 30)))
        ids = torch.randint(0, model.tokens.num_embeddings, (2, *shape))
    return model.train(), {"input_ids": ids[0], "labels": ids[1]}
