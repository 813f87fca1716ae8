"""Habits of plain scripts: kept sparse matrices, late hooks, autocast, packed codes, late norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SAMPLES, USERS, ITEMS, WIDTH, VOCABULARY = 4, 8, 12, 16, 40


class LightGraph(nn.Module):
    """A recommender whose graph is a sparse buffer, with a ranking loss."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, 8), nn.Embedding(ITEMS, 8)
        edges = (torch.rand(USERS + ITEMS, USERS + ITEMS) > 0.7).float()
        degrees = edges.sum(1).clamp_min(1).rsqrt()
        self.register_buffer("graph", (degrees[:, None] * edges * degrees).to_sparse())

    def forward(self, user: Tensor, liked: Tensor, other: Tensor) -> Tensor:
        x = torch.cat([self.users.weight, self.items.weight])
        levels = [x]
        for _ in range(2):
            x = torch.sparse.mm(self.graph, x)
            levels.append(x)
        users, items = torch.stack(levels).mean(0).split([USERS, ITEMS])
        better, worse = ((users[user] * items[i]).sum(-1) for i in (liked, other))
        return -F.logsigmoid(better - worse).mean()


def light_graph():
    rows = [torch.randint(0, n, (8,)) for n in (USERS, ITEMS, ITEMS)]
    return LightGraph(), tuple(rows)


class LateHooks(nn.Module):
    """Tied transposed convolutions; hooks on an activation that was used before."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.deep = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 2, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.deep(F.gelu(self.narrow(pixels)))
        wide = F.gelu(F.conv_transpose2d(hidden, self.deep.weight, stride=2))
        image = F.conv_transpose2d(wide, self.narrow.weight, padding=1)
        hidden.register_hook(lambda gradient: gradient / (1 + gradient.norm()))
        hidden.register_hook(lambda gradient: 0.5 * gradient)
        return F.l1_loss(image, pixels) + 1e-2 * hidden.square().mean()


def late_hooks():
    return LateHooks(), (torch.randn(SAMPLES, 3, 8, 8),)


class HalfCheckpointed(nn.Module):
    """Layers with attention dropout under autocast, others checkpointed outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True) for _ in range(4)
        )
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for layer in self.layers[:2]:
                x = layer(x)
            with torch.autocast("cpu", enabled=False):
                for layer in self.layers[2:]:
                    x = checkpoint(layer, x.to(self.head.weight.dtype), use_reentrant=True)
        logits = self.head(x)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def half_checkpointed():
    return HalfCheckpointed(), (torch.randint(0, VOCABULARY, (SAMPLES, 8)),)


class FourBits(nn.Module):
    """A frozen weight as codes of four bits, two a byte, with an adapter of low rank."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        codes = torch.randint(0, 256, (outputs * inputs // 2,), dtype=torch.uint8)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", 0.3 * torch.rand(outputs * inputs // 8, 1))
        self.register_buffer("table", torch.linspace(-1, 1, 16))
        self.down = nn.Parameter(0.1 * torch.randn(2, inputs))
        self.up = nn.Parameter(0.1 * torch.randn(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        halves = torch.stack([self.codes >> 4, self.codes & 15], -1).flatten().long()
        weight = (self.table[halves].view(-1, 8) * self.scales).view(len(self.up), -1)
        return F.linear(x, weight) + x @ self.down.T @ self.up.T


class FourBitBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.wide, self.narrow = FourBits(WIDTH, 32), FourBits(32, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.silu(self.wide(self.norm(x))))


class Adapters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH).requires_grad_(False)
        self.blocks = nn.Sequential(FourBitBlock(), FourBitBlock())
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.head(self.blocks(self.tokens(ids)))[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def four_bit_adapters():
    return Adapters(), (torch.randint(0, VOCABULARY, (SAMPLES, 8)),)


class LateNorms(nn.Module):
    """Batch norms behind the repeated blocks, one of which averages over all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()) for _ in range(4)
        )
        self.norm, self.head = nn.BatchNorm1d(WIDTH, momentum=None), nn.Linear(WIDTH, 5)
        self.last = nn.BatchNorm1d(5, momentum=0.3, affine=False)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return F.cross_entropy(self.last(self.head(self.norm(x).mean(-1))), labels)


def late_norms():
    return LateNorms(), (torch.randn(8, 3, 12), torch.randint(0, 5, (8,)))
