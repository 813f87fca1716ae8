"""Modules whose state is more than weights: buffers that steer gradients, queues, learned step sizes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from plait.tests.runtime.exact_nets import CLASSES, WIDTH, Net

QUEUED = 32  # of the queue
EXPERTS = 4


class HookedByStep(Net):
    """A hook scales gradients by a count of steps that is a buffer."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen.add_(1)
        h = self.hidden(x)
        h.register_hook(lambda gradient: gradient * (1 / (1 + self.seen)))
        return F.cross_entropy(self.head(h), y)


class LearnedSteps(torch.autograd.Function):
    """Rounds weights to multiples of a step size that is learned (Esser et al. 2020)."""

    @staticmethod
    def forward(ctx, weight, size):
        levels = (weight / size).round().clamp(-7, 7)
        ctx.save_for_backward(weight, size, levels)
        return levels * size

    @staticmethod
    def backward(ctx, gradient):
        weight, size, levels = ctx.saved_tensors
        inside = (weight / size).abs() <= 7
        of_size = gradient * torch.where(inside, levels - weight / size, levels)
        return gradient * inside, of_size.sum() / math.sqrt(weight.numel() * 7)


class QuantisedLinear(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.size = nn.Parameter(torch.tensor(0.05))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, LearnedSteps.apply(self.weight, self.size), self.bias)


class Quantised(Net):
    def __init__(self) -> None:
        super().__init__()
        for layer in self.layers:
            layer.up = QuantisedLinear(WIDTH, 4 * WIDTH)
            layer.down = QuantisedLinear(4 * WIDTH, WIDTH)


class Parametrized(Net):
    """A spectral norm, whose power iteration lives in buffers, and a weight norm."""

    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.layers[0].up)
        parametrizations.weight_norm(self.layers[1].down)


class Queue(Net):
    """Negatives are the representations of batches before, in a ring with a pointer."""

    queue: Tensor
    next: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", F.normalize(torch.randn(QUEUED, CLASSES), dim=-1))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        query = F.normalize(self.head(self.hidden(x)), dim=-1)
        key = query.detach().roll(1, -1)
        near = (query * key).sum(-1, keepdim=True)
        logits = torch.cat([near, query @ self.queue.clone().t()], 1) / 0.2
        with torch.no_grad():
            places = (self.next + torch.arange(len(key))) % QUEUED
            self.queue.index_copy_(0, places, key)
            self.next.add_(len(key)).remainder_(QUEUED)
        return F.cross_entropy(logits, torch.zeros_like(y))


class Recent(Net):
    """Buffers that become activations as they are, the batch, and what another buffer was."""

    recent: Tensor
    before: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("recent", "before", "last"):
            self.register_buffer(name, torch.zeros(QUEUED, WIDTH))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.hidden(x)
        pull = (h * (self.recent + self.before.roll(1, 0) + self.last).mean(0)).sum(-1)
        with torch.no_grad():
            self.before.copy_(self.recent)
            self.recent.copy_(torch.cat([h, self.recent[: -len(h)]]))
            self.last[: len(x)] = x
        return F.cross_entropy(self.head(h), y) + pull.tanh().mean()


class Taught(Net):
    """A teacher of the batch alone and a probe, trainable both, that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.probe = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.hidden(x)
        with torch.no_grad():
            taught = self.teacher(x).tanh()
        missed = self.probe(h).detach().square().mean()
        return F.cross_entropy(self.head(h), y) + F.mse_loss(h, taught) + missed


class Penalised(Net):
    """The length of the loss's gradient by the input shall be one (WGAN-GP), through layer norms."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_(True)
        scores = self.head(self.hidden(x))
        (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return F.cross_entropy(scores, y) + (gradient.norm(2, dim=-1) - 1).square().mean()


class Balanced(Net):
    """A router whose bias follows the loads of experts, without a loss of its own (DeepSeek-V3)."""

    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        self.register_buffer("bias", torch.zeros(EXPERTS))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.hidden(x)
        scores = self.gate(h).sigmoid()
        chosen = (scores + self.bias).topk(2, -1).indices
        mask = F.one_hot(chosen, EXPERTS).sum(1).to(scores.dtype)
        shares = scores * mask / (scores * mask).sum(-1, keepdim=True)
        mixed = sum(shares[:, i : i + 1] * expert(h) for i, expert in enumerate(self.experts))
        with torch.no_grad():
            loads = mask.sum(0)
            self.bias.add_(0.05 * (loads.mean() - loads).sign())
        return F.cross_entropy(self.head(h + mixed), y)
