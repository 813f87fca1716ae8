"""How both sides of a verification train, and what one process computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Gradients = dict[str, Tensor]


class Training(NamedTuple):
    """How both sides train: a torch optimizer and its arguments, steps on one batch, the seed."""

    optimizer: Callable[..., torch.optim.Optimizer]
    arguments: Mapping[str, Any]
    steps: int
    seed: int


# fmt: off
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"lr": 1e-3}),
    "adam": (torch.optim.Adam, {"lr": 1e-3}),
    "sgd": (torch.optim.SGD, {"lr": 1e-2}),
    "momentum": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.01}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-3}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-3}),
}
# fmt: on


class Reference(NamedTuple):
    """Losses and gradients by step, and parameters and buffers after the last.

    `notes` say what could not be checked, or was checked in another manner. `faults` are differences
    between the module and its trace that were seen while it ran; `unmatched_draws` are random masks
    that only one of the two draws, which may be masks of values that nothing reads.
    """

    losses: list[float]
    gradients: list[Gradients]
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    unmatched_draws: tuple[str, ...] = ()
