"""How both sides of a verification train, and what one process computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...ir.capture.sources.source import source_factory
from ...ir.errors import UsageError

Gradients = dict[str, Tensor]


class Training(NamedTuple):
    """How both sides train: a torch optimizer and its arguments, steps on one batch, the seed."""

    optimizer: Callable[..., torch.optim.Optimizer]
    arguments: Mapping[str, Any]
    steps: int
    seed: int

    def longest_step(self) -> float:
        """The largest learning rate of any group, for a matrix and for a vector."""
        one = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
        groups = self.optimizer(one, **self.arguments).param_groups
        return max(float(group.get("lr", 1e-3)) for group in groups)


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


def training_of(optimizer: str, steps: int, seed: int) -> Training:
    """How to train with an optimizer of the table, of `torch.optim` by its class, or of a user's
    factory (`file.py:factory`), with the factory's own arguments.

    Raises UsageError for any other.
    """
    if optimizer in OPTIMIZERS:
        return Training(*OPTIMIZERS[optimizer], steps, seed)
    if ":" in optimizer:
        return Training(source_factory(optimizer), {}, steps, seed)
    known = getattr(torch.optim, optimizer, None)
    if not isinstance(known, type) or not issubclass(known, torch.optim.Optimizer):
        raise UsageError(
            f"unknown optimizer {optimizer!r}; known: {', '.join(OPTIMIZERS)}, classes of torch.optim, "
            "and file.py:factory"
        )
    return Training(known, {}, steps, seed)


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
