"""Models that every engine can split: a GPT-2-like and a Llama-like decoder in plain torch.

The same module is run eagerly, wrapped by an engine of torch, cut into stages by hand, or traced by
Plait. `forward(tokens [batch, length], labels [batch, length])` gives the mean loss of all tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Sizes(NamedTuple):
    """What a model is built with, and the global batch that it trains on."""

    width: int
    depth: int
    heads: int
    vocabulary: int = 4096
    length: int = 128
    batch: int = 8
    dropout: float = 0.1


class GptBlock(nn.Module):
    """Attention and an MLP with biases, layer norms before them, dropout after them."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.heads, self.rate = sizes.heads, sizes.dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        q, k, v = (self.split(layer(y)) for layer in (self.query, self.key, self.value))
        rate = self.rate if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + self.dropout(self.out(y.transpose(1, 2).flatten(2)))
        y = functional.gelu(self.up(self.norm_2(x)), approximate="tanh")
        return x + self.dropout(self.down(y))

    def split(self, x: Tensor) -> Tensor:
        """Heads of [batch, length, width]: fewer on a rank that has a part of them."""
        size = self.norm_1.weight.shape[0] // self.heads
        return x.unflatten(-1, (-1, size)).transpose(1, 2)


class LlamaBlock(nn.Module):
    """Attention with rotary angles and half as many key heads, and a gated MLP."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, inner = sizes.width, 8 * sizes.width // 3 // 32 * 32
        self.head_size = width // sizes.heads
        self.norm_1, self.norm_2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width // 2, bias=False)
        self.value = nn.Linear(width, width // 2, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        q, k, v = (self.split(layer(y)) for layer in (self.query, self.key, self.value))
        q, k = self.rotated(q), self.rotated(k)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norm_2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def rotated(self, x: Tensor) -> Tensor:
        """Pairs of [batch, heads, length, size], turned by an angle that grows with the position."""
        half = self.head_size // 2
        rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(10000.0) / half))
        angles = torch.arange(x.shape[2], device=x.device).unsqueeze(1) * rates
        one, two = x.chunk(2, -1)
        sine, cosine = angles.sin(), angles.cos()
        return torch.cat((one * cosine - two * sine, two * cosine + one * sine), -1)


class GptEmbedding(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Embedding(sizes.length, sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.dropout(self.tokens(tokens) + self.positions(places))


class LlamaEmbedding(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens)


class Decoder(nn.Module):
    """An embedding, blocks, a norm and a head. A stage of a pipeline has a part of them."""

    def __init__(
        self, embedding: nn.Module | None, blocks: list[nn.Module], head: nn.Sequential | None
    ) -> None:
        super().__init__()
        self.embedding, self.blocks, self.head = embedding, nn.ModuleList(blocks), head

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        x = tokens if self.embedding is None else self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        x = x if self.head is None else self.head(x)
        return x if labels is None else loss_of(x, labels)

    def stage(self, number: int, stages: int) -> Decoder:
        """The blocks of one stage, of equal numbers of them; its first has the embedding."""
        size = len(self.blocks) // stages
        blocks = list(self.blocks[number * size : (number + 1) * size])
        first, last = number == 0, number == stages - 1
        return Decoder(self.embedding if first else None, blocks, self.head if last else None)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of [batch, length, vocabulary] against labels [batch, length]."""
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def gpt2(sizes: Sizes) -> Decoder:
    blocks: list[nn.Module] = [GptBlock(sizes) for _ in range(sizes.depth)]
    head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
    return Decoder(GptEmbedding(sizes), blocks, nn.Sequential(nn.LayerNorm(sizes.width), head))


def llama(sizes: Sizes) -> Decoder:
    blocks: list[nn.Module] = [LlamaBlock(sizes) for _ in range(sizes.depth)]
    head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
    return Decoder(LlamaEmbedding(sizes), blocks, nn.Sequential(nn.RMSNorm(sizes.width), head))


MODELS = {"gpt2": (gpt2, Sizes(256, 4, 8)), "llama": (llama, Sizes(384, 4, 8, dropout=0.0))}


def build(name: str, batch: int = 0) -> tuple[Decoder, dict[str, Tensor]]:
    """A model by name with its first values, and a global batch; the same on every rank."""
    factory, sizes = MODELS[name]
    torch.manual_seed(0)
    model = factory(sizes)
    shape = (batch or sizes.batch, sizes.length)
    tokens, labels = (torch.randint(sizes.vocabulary, shape) for _ in range(2))
    return model.train(), {"tokens": tokens, "labels": labels}
