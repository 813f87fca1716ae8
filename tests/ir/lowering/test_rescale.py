"""A model at another batch size, and prices of one at several."""

import torch
from torch import nn

from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.lowering.rescale import rescale
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all


class Queries(nn.Module):
    """Learned queries, one copy for every sample."""

    def __init__(self):
        super().__init__()
        self.queries, self.layer = nn.Parameter(torch.randn(5, 8)), nn.Linear(8, 8)

    def forward(self, x):
        queries = self.queries.unsqueeze(0).repeat(x.size(0), 1, 1)
        return (self.layer(queries) * x[:, None]).square().mean()


def test_copies_for_every_sample_follow_the_batch():
    model = trace(Queries(), (torch.randn(4, 8),))
    ops = [op for function in rescale(model, 12).functions for op in function.ops]
    assert [op.args[1] for op in ops if "repeat" in op.target] == [(12, 1, 1)]


def test_micro_batches_of_one_sample_are_priced():
    options = PlanOptions(pins=pin_all("dp=2"), micro_batches=2)
    model = trace(Queries(), (torch.randn(4, 8),))
    assert plan(model, load_cluster("local:2"), options).micro_batches == 2
