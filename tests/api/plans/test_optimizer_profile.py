"""Planning knows of an optimizer what it does, whether it is named or given."""

import pytest
import torch
from torch import nn

import plait
from plait.api.plans.optimizer_profile import optimizer_profile, run_time_optimizer
from plait.ir.errors import UsageError
from plait.ir.plan.plan import Optimizer
from plait.planner.question.options import PlanOptions
from plait.planner.question.training import optimizer_states, training_of_plan
from plait.tests.runtime.state.recipes import ClippedAdamW, Lamb, groups_by_name


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 8)

    def forward(self, x, y):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return nn.functional.cross_entropy(self.head(x), y)


def batch():
    return {"x": torch.randn(8, 16), "y": torch.zeros(8, dtype=torch.int64)}


def test_known_optimizers_keep_their_names() -> None:
    model = Net()
    for optimizer, name in ((torch.optim.AdamW, "adamw"), (torch.optim.SGD, "sgd")):
        assert optimizer_profile(model, optimizer, {"lr": 0.1}, None) == name
    greedy = optimizer_profile(model, Lamb, {"lr": 0.1}, None)
    assert greedy == Optimizer("Lamb", 2, 0, "per tensor", step_vectors=4)
    assert optimizer_profile(model, None, None, None) == "adamw"
    assert optimizer_profile(model, "muon", None, None) == "muon"
    instance = torch.optim.AdamW(model.parameters(), amsgrad=True)
    amsgrad = Optimizer("AdamW", 3, 0, step_vectors=0)
    assert optimizer_profile(model, instance, None, None) == amsgrad
    momentum = optimizer_profile(
        model, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, groups_by_name
    )
    assert momentum == Optimizer("SGD", 1, 0, step_vectors=0)
    with pytest.raises(UsageError, match="param_groups go to an optimizer class"):
        optimizer_profile(model, "muon", None, groups_by_name)
    with pytest.raises(UsageError, match="give its class"):
        run_time_optimizer("muon")
    assert run_time_optimizer("1-bit-adam") is None


def test_plans_differ_by_what_the_optimizer_needs() -> None:
    model, data = Net(), batch()
    plans = {
        optimizer: plait.plan(model, data, cluster="local:4", optimizer=optimizer, pin="*:zero1=4")
        for optimizer in ("adamw", torch.optim.AdamW, "muon", Lamb)
    }
    assert plans["adamw"] == plans[torch.optim.AdamW]
    assert plans["muon"].optimizer == Optimizer("muon", 2, 4, "per tensor")
    assert plans[Lamb].optimizer.states == 3
    with pytest.raises(UsageError, match="zero1=4 has zero1; pin dp alone"):
        plait.plan(model, data, cluster="local:4", optimizer=ClippedAdamW, pin="*:zero1=4")
    plan = plait.plan(model, data, cluster="local:4", optimizer=ClippedAdamW)
    assert {a.name for s in plan.strategies for a in s.mesh.axes if a.size > 1} <= {
        "dp",
        "cp",
        "sp",
    }
    assert plan.optimizer == Optimizer("ClippedAdamW", 2, 4, "across tensors")
    assert "ClippedAdamW" in str(plan)
    probed = Optimizer("adamw", 5, 0, step_vectors=7)  # a known name, otherwise unlike
    plan = plait.plan(model, data, cluster="local:4", optimizer=probed)
    again = PlanOptions(**training_of_plan(plan))
    assert optimizer_states(again, 4) == plan.optimizer == Optimizer("adamw", 5, 4, step_vectors=7)


def test_whole_tensors_are_in_the_memory_of_a_plan() -> None:
    """Where ranks have shards: the copy of the owner, and the largest tensor (16 × 16 in float32)."""
    model, data = Net(), batch()

    def plan(optimizer, pin):
        return plait.plan(model, data, cluster="local:4", optimizer=optimizer, pin=f"*:{pin}")

    muon, plain = (dict(plan(o, "zero1=4").stages[0].memory_terms) for o in ("muon", "momentum"))
    assert muon["whole tensors"] == 16 * 16 * 4 * (2 + 2)
    assert muon["optimizer"] == 2 * plain["optimizer"]
    assert "whole tensors" not in plain
    assert "whole tensors" not in dict(plan("muon", "dp=4").stages[0].memory_terms)
    explained = plan("muon", "zero1=4").explain(memory=True)
    assert "whole tensors" in explained
