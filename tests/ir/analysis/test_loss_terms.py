"""Terms of a loss that cross calls stay partial sums; what is read otherwise does not."""

import pytest
import torch
from torch import nn

from plait.codegen import compile_program
from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.dataflow import analyse_dataflow
from plait.ir.analysis.loss_terms import summed_names
from plait.ir.capture import trace
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all


class Terms(nn.Module):
    """A term of the loss from every layer, joined at the end: added up, or multiplied."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.linear = linear

    def forward(self, x):
        total = 0
        for layer in self.layers:
            x = layer(x)
            term = x.square().mean()
            total = total + term if self.linear else 1 + term * (total + 1)
        return total


class Momentum(nn.Module):
    """A step that reads weights without a gradient before it trains them."""

    def __init__(self) -> None:
        super().__init__()
        self.trained, self.slow = nn.Linear(8, 8), nn.Linear(8, 8)
        self.slow.requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            self.slow.weight.mul_(0.9).add_(self.trained.weight, alpha=0.1)
        return (self.trained(x) - self.slow(x)).square().mean()


@pytest.mark.parametrize("linear", [True, False], ids=["added", "multiplied"])
def test_terms_stay_partial_where_they_are_added_up(linear: bool) -> None:
    model = trace(Terms(linear), torch.randn(4, 8))
    names = summed_names(analyse_dataflow(model))
    assert model.loss in names
    options = PlanOptions(pins=pin_all("pp=2"), micro_batches=2)
    if linear:
        assert plan(model, load_cluster("local:2"), options).micro_batches == 2
    else:
        with pytest.raises(Exception, match="couples"):
            plan(model, load_cluster("local:2"), options)


def test_weights_that_are_read_before_they_are_trained_are_summed() -> None:
    model = trace(Momentum(), torch.randn(4, 8))
    found = plan(model, load_cluster("local:2"), PlanOptions(pins=pin_all("dp=2")))
    table = compile_program(found, model).table
    axes = {spec.name: spec.partial_axes for spec in table.state_tensors if spec.trainable}
    assert set(axes.values()) == {("dp",)}
