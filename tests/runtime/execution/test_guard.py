"""What a program has as a constant may not change between steps."""

from __future__ import annotations

import functools
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from plait.ir.errors import MismatchError
from plait.runtime.execution.guard import Guard


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 4), nn.Dropout(0.1)
        self.scale, self.table = 0.5, torch.ones(3)
        self.steps = [1, 2]
        self.options = SimpleNamespace(alpha=1.0)

    def forward(self, x):
        return self.drop(self.linear(x)) * self.scale


def loss_of(weight: float):
    table = torch.ones(2)

    def loss(output, batch):
        return output.sum() * weight * table.sum()

    return loss, table


def changed(model: nn.Module, change, *texts: str, loss=None) -> None:
    guard = Guard(model, loss)
    guard.check()
    change()
    with pytest.raises(MismatchError) as caught:
        guard.check()
    for text in texts:
        assert text in str(caught.value)


def test_numbers_flags_and_tensors_that_change() -> None:
    model = Model()
    changed(model, lambda: setattr(model, "scale", 0.25), "scale is 0.25", "was 0.5")
    changed(model, lambda: setattr(model.drop, "p", 0.2), "drop.p is 0.2", "was 0.1")
    changed(model, model.eval, "training is False", "was True")
    changed(model, lambda: model.table.mul_(2), "table")
    changed(model, lambda: setattr(model, "table", torch.ones(3)), "table")
    changed(model, lambda: setattr(model.options, "alpha", 2.0), "options.alpha is 2.0")
    changed(model, lambda: model.steps.__setitem__(0, 5), "steps[0] is 5")
    changed(model, lambda: setattr(model, "steps", [5, 7]), "steps[1] is 7", "was 2")
    changed(model, lambda: setattr(model, "steps", None), "steps: number of items")


def test_parameters_that_are_frozen_or_hooked_later() -> None:
    model = Model()
    changed(model, lambda: model.linear.weight.requires_grad_(False), "linear.weight", "False")
    changed(model, lambda: model.linear.bias.register_hook(lambda g: g * 2), "linear.bias")
    changed(model, lambda: model.linear.register_forward_hook(lambda m, a, b: b), "_forward_hooks")


def test_tensors_in_a_loss_function() -> None:
    loss, table = loss_of(2.0)
    changed(Model(), lambda: table.add_(1), "loss.table", loss=loss)


def test_what_the_forward_changes_itself_is_left_out() -> None:
    model = Model()
    guard = Guard(model, steady=frozenset({"scale"}))
    model.scale = 3.0
    guard.check()


def test_a_guard_keeps_nothing_alive() -> None:
    model = Model()
    loss = functools.partial(torch.mean, [3.0])
    guard, alive = Guard(model, loss), [weakref.ref(module) for module in model.modules()]
    guard.check()
    del model
    gc.collect()
    assert [one() for one in alive] == [None] * 3
    guard.check()
