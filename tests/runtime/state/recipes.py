"""Optimizers and training recipes as users write them, for a program and for one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

LR = 1e-2


class Lamb(torch.optim.Optimizer):
    """Layer-wise adaptive moments: scales by norms of whole tensors (You et al. 2020)."""

    def __init__(self, params, lr: float = LR, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["step"] += 1
                state["m"].lerp_(p.grad, 0.1)
                state["v"].lerp_(p.grad**2, 0.01)
                update = state["m"] / (state["v"].sqrt() + 1e-6) + group["weight_decay"] * p
                ratio = p.norm().clamp(0, 10) / update.norm() if p.norm() > 0 else 1.0
                p.sub_(update * (group["lr"] * ratio))


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for matrices, AdamW for the rest, as one optimizer that holds two."""

    def __init__(self, params, lr: float = LR) -> None:
        params = list(params)
        self.muon = torch.optim.Muon([p for p in params if p.ndim == 2], lr=lr)
        self.adamw = torch.optim.AdamW([p for p in params if p.ndim != 2], lr=lr)
        super().__init__(params, {"lr": lr})
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    def step(self, closure=None):
        self.muon.step()
        self.adamw.step()


class Shampoo(torch.optim.Optimizer):
    """Preconditions each side of a matrix; its state is a list of square matrices."""

    def __init__(self, params, lr: float = LR) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, update = self.state[p], p.grad
                if not state:
                    state["sides"] = [torch.eye(n, dtype=p.dtype) * 1e-4 for n in p.shape]
                for dim, side in enumerate(state["sides"]):
                    moved = update.movedim(dim, 0)
                    rows = moved.reshape(len(side), -1)
                    side += rows @ rows.t()
                    values, vectors = torch.linalg.eigh(side)
                    root = vectors @ torch.diag(values.clamp(min=1e-8) ** -0.25) @ vectors.t()
                    update = (root @ rows).view(moved.shape).movedim(0, dim)
                p.sub_(update, alpha=group["lr"])


class ClippedAdamW(torch.optim.AdamW):
    """Clips by the norm of all gradients inside its step."""

    @torch.no_grad()
    def step(self, closure=None):
        torch.nn.utils.clip_grad_norm_([p for g in self.param_groups for p in g["params"]], 0.1)
        return super().step(closure)


class Langevin(torch.optim.SGD):
    """Adds noise from torch's own generator."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(torch.randn_like(p), alpha=1e-3)


def groups_by_dimension(params, lr: float = LR, weight_decay: float = 1.0):
    params = list(params)
    return torch.optim.AdamW(
        [
            {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=lr,
    )


def groups_by_name(named):
    """Layer-wise rates, no decay of biases, another rate for wide matrices."""
    named = list(named)
    layers = sorted({n.split(".")[1] for n, _ in named if n.startswith("layers.")})
    groups = [
        {
            "params": [p for n, p in named if n.startswith(f"layers.{i}.") and p.ndim == dims],
            "lr": LR * (int(i) + 1),
            "weight_decay": 0.5 if dims == 2 else 0.0,
        }
        for i in layers
        for dims in (1, 2)
    ]
    rest = [p for n, p in named if not n.startswith("layers.")]
    return [*groups, {"params": rest, "lr": LR / 2 if rest[0].shape[0] > 5 else LR}]


class Recipe(NamedTuple):
    """A way to train. `clip` is (norm, order); `accumulate` batches make a step."""

    factory: Any
    args: Mapping[str, Any] = MappingProxyType({})
    groups: Callable[..., Any] | None = None
    scheduler: Callable[..., Any] | None = None
    clip: tuple[float, float] | None = None
    accumulate: int = 1

    def optimizer(self, module: nn.Module):
        groups = list(module.named_parameters()) if self.groups else list(module.parameters())
        return self.factory(self.groups(groups) if self.groups else groups, **self.args)


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [g["lr"] * 3 for g in optimizer.param_groups], total_steps=10
    )


def warm_up(optimizer):
    rates = [lambda step, i=i: (step + 1) / (3 + i) for i in range(len(optimizer.param_groups))]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rates)


SGD, MOMENTUM = torch.optim.SGD, {"lr": LR, "momentum": 0.9}
RECIPES = {
    "adamw": Recipe(torch.optim.AdamW, {"lr": LR}),
    "adagrad": Recipe(torch.optim.Adagrad, {"lr": LR, "initial_accumulator_value": 0.3}),
    "groups by dimension": Recipe(groups_by_dimension),
    "groups by name": Recipe(torch.optim.AdamW, {"lr": LR}, groups_by_name, one_cycle),
    "muon and adamw": Recipe(MuonAndAdamW, {"lr": LR}, None, warm_up),
    "lamb": Recipe(Lamb, {"lr": LR}, clip=(0.5, 2.0)),
    "adafactor": Recipe(torch.optim.Adafactor, {"lr": LR}),
    "shampoo": Recipe(Shampoo, {"lr": LR}, accumulate=2),
    "clip and accumulate": Recipe(SGD, MOMENTUM, None, warm_up, (0.3, 2.0), 2),
    "clip by largest": Recipe(SGD, MOMENTUM, groups_by_name, None, (0.05, float("inf"))),
}
