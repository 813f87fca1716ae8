"""Small models of many kinds, as factories for `benchmarks/compositions.py`.

Those of tests/zoo are in training mode with their dropout; the others are small modules with what
real ones lack: tied and frozen weights, running statistics, padded labels, losses with a second term.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from plait.tests import zoo

BATCH = 8


class Residual(nn.Module):
    """A block of an MLP with a norm and dropout."""

    def __init__(self, width: int, inner: int, rate: float) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, inner)
        self.down, self.drop = nn.Linear(inner, width, bias=False), nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.down(functional.gelu(self.up(self.norm(x)))))


class Attention(nn.Module):
    """Causal attention with dropout on its weights, keys shared by pairs of heads."""

    def __init__(self, width: int, heads: int, rate: float) -> None:
        super().__init__()
        self.heads, self.size, self.rate = heads, width // heads, rate
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)
        self.queries = nn.Linear(width, width)
        self.keys = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, s, width = x.shape
        y = self.norm(x)
        q = self.queries(y).view(b, s, self.heads, self.size).transpose(1, 2)
        k, v = self.keys(y).view(b, s, self.heads, self.size).transpose(1, 2).chunk(2, 1)
        k, v = (one.repeat_interleave(2, 1) for one in (k, v))
        mixed = functional.scaled_dot_product_attention(
            q, k, v, dropout_p=self.rate if self.training else 0.0, is_causal=True
        )
        return x + self.out(mixed.transpose(1, 2).reshape(b, s, width))


class Language(nn.Module):
    """A decoder whose head is its embedding, whose first layer is frozen, and whose loss has a term
    of its own (the size of the logits)."""

    def __init__(self, layers: int, width: int, vocabulary: int, rate: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(16, width) * 0.02)
        pairs = (
            nn.Sequential(Attention(width, 4, rate), Residual(width, 2 * width, rate))
            for _ in range(layers)
        )
        self.layers = nn.ModuleList(pairs)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.layers[0].parameters():
            parameter.requires_grad_(False)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        flat, wanted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        loss = functional.cross_entropy(flat, wanted, ignore_index=-100)
        return loss + 1e-3 * logits.logsumexp(-1).square().mean()


class Pictures(nn.Module):
    """Convolutions with batch norm, whose statistics are buffers, and a mean over space."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 16)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


class Averaged(nn.Module):
    """A buffer that follows the batch's mean, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("center", torch.zeros(8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    center: Tensor
    steps: Tensor

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.center.mul_(0.9).add_(x.mean(0), alpha=0.1)
            self.steps.add_(1)
        x = torch.tanh(self.linear(torch.tanh(self.linear(x - self.center))))
        return self.last(x).square().mean()


def mlp() -> Any:
    model = nn.Sequential(*(Residual(16, 32, 0.2) for _ in range(4)), nn.Linear(16, 4))
    return model, (torch.randn(BATCH, 16),), lambda out, batch: out.square().mean()


def wide() -> Any:
    """Weights large enough to be compressed as they travel."""
    model = nn.Sequential(*(Residual(128, 256, 0.1) for _ in range(2)), nn.Linear(128, 8))
    return model, (torch.randn(BATCH, 128),), lambda out, batch: out.square().mean()


def language() -> Any:
    ids = torch.randint(48, (BATCH, 12))
    labels = torch.where(torch.rand(BATCH, 12) < 0.3, -100, ids)
    return Language(3, 16, 48, 0.15), {"ids": ids, "labels": labels}


def pictures() -> Any:
    labels = torch.randint(4, (BATCH,))

    def loss(out: Tensor, batch: Any) -> Tensor:
        return functional.cross_entropy(out, batch[1], label_smoothing=0.1)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Pictures()

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return self.net(x)

    return Pair(), (torch.randn(BATCH, 3, 8, 8), labels), loss


def averaged() -> Any:
    return Averaged(), (torch.randn(BATCH, 8),)


def _of_the_zoo(name: str, **config: Any) -> Any:
    model, batch = zoo.ZOO[name](**config)
    return model.train(), batch


def gpt2() -> Any:
    return _of_the_zoo("gpt2")


def llama() -> Any:
    return _of_the_zoo("llama")


def gemma2() -> Any:
    return _of_the_zoo("gemma2")


def mixtral() -> Any:
    return _of_the_zoo("mixtral", router_aux_loss_coef=0.02, output_router_logits=True)


def bert() -> Any:
    return _of_the_zoo("bert")


def t5() -> Any:
    return _of_the_zoo("t5")


def vit() -> Any:
    return _of_the_zoo("vit")


def convnext() -> Any:
    return _of_the_zoo("convnext", drop_path_rate=0.2)


def resnet() -> Any:
    return _of_the_zoo("resnet")


def mamba() -> Any:
    return _of_the_zoo("mamba")


# fmt: off
MODELS = (
    "mlp", "wide", "language", "pictures", "averaged",
    "gpt2", "llama", "gemma2", "mixtral", "bert", "t5", "vit", "convnext", "resnet", "mamba",
)
# fmt: on


# optimizers that see whole tensors


class Trusting(torch.optim.Optimizer):
    """Layer-wise adaptive moments in a spelling of its own: a step's size follows a weight's norm."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                first = state.setdefault("first", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                second = state.setdefault("second", torch.zeros_like(p)).lerp_(p.grad**2, 0.01)
                update = first / (second.sqrt() + 1e-6) + 0.01 * p
                sizes = p.norm().clamp(max=10), update.norm()
                trust = sizes[0] / sizes[1] if min(sizes) > 0 else 1.0
                p.sub_(update * (group["lr"] * trust))


class MatricesApart(torch.optim.Optimizer):
    """Muon for matrices and AdamW for the rest, as one optimizer."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        params = list(params)
        matrices = [p for p in params if p.ndim == 2]
        rest = torch.optim.AdamW([p for p in params if p.ndim != 2], lr=lr)
        self.parts: list[torch.optim.Optimizer] = [rest]
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, lr=lr))
        super().__init__(params, {"lr": lr})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> Any:
        for part in self.parts:
            part.step()


def lamb(parameters: Any) -> torch.optim.Optimizer:
    return Trusting(parameters)


def muon(parameters: Any) -> torch.optim.Optimizer:
    return MatricesApart(parameters)


def by_dimension(parameters: Any) -> torch.optim.Optimizer:
    """AdamW with decay for matrices alone."""
    parameters = list(parameters)
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-3,
    )
