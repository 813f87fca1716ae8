"""Hooks on gradients are part of the traced model, or refused by the line where they are defined."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plait.ir.capture import trace
from plait.tests.ir.capture.judged import CLASSES, WIDTH, Net, agrees, batch, make, refused

ROWS = (torch.arange(CLASSES) > 1).double().unsqueeze(1)


def masked(gradient):
    return gradient * ROWS


def clamped(gradient):
    return gradient.clamp(-1e-3, 1e-3)


def in_place(gradient):
    gradient.mul_(0.5)


def watch(gradient):
    print(gradient)  # watches


def accumulated(parameter):
    parameter.grad = parameter.grad * 0.25


def accumulated_in_place(parameter):
    parameter.grad.mul_(ROWS)


def drops(parameter):
    parameter.grad = None


def halved(module, lower, upper):
    return tuple(None if g is None else g * 0.5 for g in lower)


def mixed(module, lower, upper):
    return (lower[0] + upper[0].tanh() * 0.1,)


def lifted(module, upper):
    return (upper[0] * 3,)


def module_watch(module, lower, upper):
    print(lower)


class Inside(Net):
    """Hooks that the forward registers on activations."""

    def __init__(self, hook, **more) -> None:
        super().__init__()
        self.hook = hook

    def forward(self, x, y):
        h = self.hidden(x)
        h.register_hook(self.hook)
        part = h[:, :4]
        part.register_hook(lambda g: g + 0.1 * part.detach())
        return F.cross_entropy(self.head(h), y) + part.square().mean()


class Late(Net):
    def forward(self, x, y):
        h = self.hidden(x)
        used = self.head(h)
        h.register_hook(lambda g: g / (1 + g.norm()))  # late, and another that comes after it
        h.register_hook(lambda g: g * 2 + 1)
        return F.cross_entropy(used, y)


class TooLate(Net):
    def forward(self, x, y):
        h = self.hidden(x)
        used = self.head(h)
        h.register_hook(lambda g: g * used.detach().mean())
        return F.cross_entropy(used, y)


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(WIDTH, CLASSES)
        self.again.weight = self.head.weight

    def forward(self, x, y):
        h = self.hidden(x)
        return F.cross_entropy(self.head(h), y) + F.cross_entropy(self.again(h * 2), y)


@pytest.mark.parametrize("hook", [clamped, in_place, torch.zeros_like])
def test_hooks_on_activations(hook) -> None:
    agrees(make(lambda: Inside(hook)), batch())


@pytest.mark.parametrize("kind", [Net, Tied])
@pytest.mark.parametrize("hook", [masked, clamped, in_place])
def test_hooks_on_parameters(kind, hook) -> None:
    model = make(kind)
    model.head.weight.register_hook(hook)
    agrees(model, batch())


def test_hooks_on_parameters_of_layers_keep_one_function() -> None:
    model = make(Net)
    for layer in model.encoder.layers:
        layer.up.weight.register_hook(clamped)
        layer.up.weight.register_hook(lambda g: g * 2)
    traced = agrees(model, batch())
    assert len(traced.functions) == len(trace(make(Net), batch()).functions)


@pytest.mark.parametrize("hook", [accumulated, accumulated_in_place])
def test_hooks_after_accumulation(hook) -> None:
    model = make(Net)
    model.head.weight.register_post_accumulate_grad_hook(hook)
    agrees(model, batch())


def test_an_optimizer_inside_backward() -> None:
    model = make(Net)
    optimizer = torch.optim.SGD([model.head.weight], 0.1)

    def step(parameter):
        optimizer.step()
        optimizer.zero_grad()

    model.head.weight.register_post_accumulate_grad_hook(step)
    refused(model, batch(), "hook", at=step)
    model = make(Net)
    model.head.weight.register_post_accumulate_grad_hook(drops)
    refused(model, batch(), "drops the gradient", at=drops)


@pytest.mark.parametrize("hook", [halved, mixed])
def test_backward_hooks_of_layers(hook) -> None:
    model = make(Net)
    for layer in model.encoder.layers:
        layer.register_full_backward_hook(hook)
        layer.register_full_backward_pre_hook(lifted)
    traced = agrees(model, batch())
    assert len(traced.functions) == len(trace(make(Net), batch()).functions)


def test_backward_hooks_of_a_module_of_layers() -> None:
    model = make(Net)
    model.encoder.register_full_backward_hook(halved)
    model.encoder.register_full_backward_pre_hook(lifted)
    agrees(model, batch())
    model = make(Net)
    model.encoder.register_full_backward_hook(mixed)
    refused(model, batch(), "Encoder", "inputs and outputs together", at=mixed)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_a_backward_hook_where_no_input_wants_a_gradient() -> None:
    model = make(Net)
    model.embed.register_full_backward_hook(halved)
    agrees(model, batch())


def test_forward_hooks() -> None:
    model = make(Net)
    model.encoder.layers[1].register_forward_hook(lambda m, given, made: made * 2)
    model.encoder.layers[1].register_forward_pre_hook(lambda m, given: (given[0] + 1,))
    agrees(model, batch())


def test_hooks_that_only_watch_are_refused() -> None:
    refused(make(lambda: Inside(watch)), batch(), "only watches", at=watch)
    model = make(Net)
    model.head.weight.register_hook(watch)
    refused(model, batch(), "only watches", at=watch)
    model = make(Net)
    model.encoder.layers[0].register_full_backward_hook(module_watch)
    refused(model, batch(), "only watches", at=module_watch)


def test_hooks_that_come_late_and_old_hooks() -> None:
    agrees(make(Late), batch())
    refused(make(TooLate), batch(), "right after", at=TooLate.forward)
    model = make(Net)
    model.encoder.layers[0].register_backward_hook(module_watch)
    refused(model, batch(), "register_full_backward_hook", at=module_watch)


def test_hooks_of_frozen_parameters_and_of_the_past_do_nothing() -> None:
    model = make(Net)
    handle = model.head.weight.register_hook(watch)
    handle.remove()
    agrees(model, batch())


def test_tracing_leaves_hooks_as_they_were() -> None:
    model = make(Net)
    model.head.weight.register_hook(masked)
    model.encoder.layers[0].register_full_backward_hook(halved)
    trace(model, batch())
    model(**batch()).backward()
    assert not model.head.weight.grad[:2].any()
    assert torch.Tensor.register_hook.__qualname__ == "Tensor.register_hook"
