"""The commands as Python: what people find by completion, and what it gives."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import plait
from plait.tests.our_warnings import our_warnings_are_errors
from plait.tests.paths import ROOT


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 8)

    def forward(self, x):
        return self.second(torch.relu(self.first(x))).pow(2).mean()


@pytest.fixture(scope="module")
def model():
    with our_warnings_are_errors():
        return plait.trace(Net(), (torch.zeros(16, 32),))


@pytest.fixture(scope="module")
def plan(model):
    with our_warnings_are_errors():
        return plait.plan(model, cluster=plait.Cluster.preset("4xh100"))


def test_a_plan_answers_what_people_ask(plan, model):
    assert plan.fits
    assert plan.step_seconds == plan.prediction.step_seconds
    assert plan.strategy in repr(plan)
    assert "\n" not in repr(plan)
    assert "instead" in plan.why_not("tp=4", model)
    assert {"DDP", "FSDP"} & {a.family for a in plan.alternatives} or plan.strategy in (
        "dp=4",
        "zero3=4",
    )
    assert not [name for name in dir(plan) if name.startswith("_")]
    assert plan._repr_html_().startswith("<iframe sandbox=")


def test_two_plans_differ_by_term(plan, model):
    other = plait.plan(model, cluster="4xh100", pin="tp=4")
    assert "layers that differ" in plait.diff(plan, other)
    slow = plait.simulate(plan, slow=["rank1=2"])
    assert slow.step_seconds > plait.simulate(plan).step_seconds


def test_a_program_is_written(plan, model, tmp_path):
    with our_warnings_are_errors():
        folder = plait.compile(plan, model, tmp_path / "program")
    assert (folder / "main.py").exists()


def test_models_and_clusters_load_by_name(model, tmp_path):
    assert plait.load_cluster("4xh100") == plait.Cluster.preset("4xh100")
    with pytest.raises(plait.UsageError):
        plait.Cluster.preset("4xh1000")
    with pytest.raises(plait.PlaitError):
        plait.load_model(str(tmp_path / "none.json"))


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from plait.api.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
def test_plans_are_made_and_drawn_without_torch(model, tmp_path):
    """`plan`, `view` and `explain` of a traced model need neither torch nor transformers."""
    from plait.api.formats import files

    source, plan = tmp_path / "model.json", tmp_path / "plan.json"
    files.write(source, model, "plait/model")
    for command in (
        ["plan", str(source), "--cluster", "4xh100", "-o", str(plan)],
        ["view", str(plan)],
        ["view", str(plan), "--model", str(source)],
        ["explain", str(plan)],
    ):
        run_without_torch(command, tmp_path)
    assert Path(tmp_path, "plan.html").exists()


def run_without_torch(command: list[str], folder: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT.parent), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *command],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
