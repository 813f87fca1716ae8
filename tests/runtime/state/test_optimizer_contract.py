"""The probe finds what an optimizer needs to see, whatever it is called and however it is spelled."""

import time

import pytest
import torch
from torch import nn

from plait.runtime.state.optimizer_binding import rebound
from plait.runtime.state.optimizer_contract import probe_optimizer
from plait.tests.runtime.state import recipes

OPTIM = torch.optim
ELEMENTWISE = [
    "Adam",
    "AdamW",
    "NAdam",
    "RAdam",
    "Adamax",
    "Adadelta",
    "Adagrad",
    "RMSprop",
    "SGD",
    "ASGD",
    "Rprop",
]


class SkipsBadSteps(OPTIM.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        if all(p.grad.isfinite().all() for g in self.param_groups for p in g["params"]):
            super().step(closure)


class DecaysMatrices(OPTIM.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            if p.ndim > 1:
                p.mul_(0.9)
        super().step(closure)


class FactorsLarge(OPTIM.SGD):
    """Row means where a matrix has many rows, as some Adafactors do."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            if p.ndim > 1 and p.shape[0] >= 128:
                p.grad /= p.grad.abs().mean(1, keepdim=True)
        super().step(closure)


class Normed(OPTIM.SGD):
    """Divides by the root mean square of each gradient."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad /= p.grad.square().mean().sqrt().clamp(min=1.0)
        super().step(closure)


class SharedRate(OPTIM.SGD):
    """One rate for all tensors from the inner products of gradients and weights, as D-adaptation."""

    @torch.no_grad()
    def step(self, closure=None):
        tensors = self.param_groups[0]["params"]
        self.param_groups[0]["lr"] = 1e-3 * sum((p * p.grad).sum() for p in tensors).item()
        super().step(closure)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(200, 160), nn.LayerNorm(160), nn.Linear(160, 7)).double()


def contract(factory, **args):
    module = network()
    parameters = list(module.parameters())
    optimizer = factory(parameters, **args)
    before = [p.detach().clone() for p in parameters]
    random = torch.random.get_rng_state()
    result = probe_optimizer(optimizer, parameters)
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(
        torch.equal(p, b) and p.grad is None for p, b in zip(parameters, before, strict=True)
    )
    assert probe_optimizer(optimizer, parameters) == result
    return result


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_torchs_own_are_elementwise(name) -> None:
    result = contract(getattr(OPTIM, name), lr=0.01)
    assert (result.demand, result.draws_random_numbers) == ("elementwise", False)


@pytest.mark.parametrize(
    ("factory", "demand"),
    [
        (OPTIM.Adafactor, "per tensor"),
        (recipes.Lamb, "per tensor"),
        (recipes.Shampoo, "per tensor"),
        (recipes.MuonAndAdamW, "per tensor"),
        (DecaysMatrices, "per tensor"),
        (FactorsLarge, "per tensor"),
        (Normed, "per tensor"),
        (recipes.ClippedAdamW, "across tensors"),
        (SkipsBadSteps, "across tensors"),
        (SharedRate, "across tensors"),
        (lambda p, lr: OPTIM.AdamW(p, lr=lr, foreach=True), "elementwise"),
        (lambda p, lr: OPTIM.AdamW(p, lr=torch.tensor(lr), amsgrad=True), "elementwise"),
        (recipes.groups_by_dimension, "elementwise"),
    ],
)
def test_users_own_are_found_out(factory, demand) -> None:
    result = contract(factory, lr=0.01)
    assert result.demand == demand, result
    assert result.evidence


def test_kinds_of_tensors_have_their_own_demands() -> None:
    result = contract(recipes.MuonAndAdamW, lr=0.01)
    assert result.demand_of(0, 2) == "per tensor"
    assert result.demand_of(1, 1) == "elementwise"
    noisy = contract(recipes.Langevin, lr=0.01)
    assert noisy.draws_random_numbers
    assert noisy.demand == "per tensor"


@pytest.mark.parametrize(
    ("factory", "states"),
    [
        (OPTIM.AdamW, 2),
        (OPTIM.SGD, 0),
        (lambda p, lr: OPTIM.SGD(p, lr=lr, momentum=0.9), 1),
        (lambda p, lr: OPTIM.Adam(p, lr=lr, amsgrad=True), 3),
        (OPTIM.Adagrad, 1),
        (OPTIM.Adafactor, 1),
        (recipes.Lamb, 2),
    ],
)
def test_states_are_counted(factory, states) -> None:
    assert contract(factory, lr=0.01).states == states


def test_what_cannot_be_tried_must_see_everything() -> None:
    class Broken(OPTIM.SGD):
        def step(self, closure=None):
            raise RuntimeError("only on my machine")

    result = contract(Broken, lr=0.01)
    assert result.demand == "across tensors"
    assert "only on my machine" in result.evidence


def test_the_probe_is_quick() -> None:
    module = network()
    optimizer = OPTIM.AdamW(module.parameters())
    start = time.process_time()
    probe_optimizer(optimizer, module.parameters())
    assert time.process_time() - start < 0.2


def test_every_reference_is_replaced() -> None:
    module = network()
    optimizer = recipes.MuonAndAdamW(module.parameters())
    optimizer.favourite = [optimizer.muon.param_groups[0]["params"][0]]
    target = nn.Parameter(torch.zeros(3))
    first = optimizer.favourite[0]
    copy = rebound(optimizer, module.parameters(), {first: target}, lambda _, state: state)
    assert copy.favourite[0] is target
    assert copy.muon.param_groups[0]["params"] == [target]
    assert copy.param_groups[0] is copy.muon.param_groups[0]
    assert copy.adamw.param_groups[0]["params"] == []
    assert optimizer.favourite[0] is first
