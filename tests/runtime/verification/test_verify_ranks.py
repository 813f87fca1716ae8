"""Verification on real ranks: agreement, a wrong number and a crash are told apart."""

from pathlib import Path

import pytest

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.ir.files.json_files import dump
from plait.ir.lowering.cast import cast_model
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.launch.launch import launch
from plait.runtime.verification import verify as verification
from plait.runtime.verification.verify import Job, verify

FACTORY = """
import torch
from torch import nn

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x).float())))

def make():
    model = nn.Sequential(Layer(), Layer(), nn.Linear(8, 4))
    return model, (torch.randn(8, 8),), lambda output, batch: output.square().mean()
"""


@pytest.mark.ranks
def test_a_verdict_for_every_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ranks that torchrun starts, as users' are."""
    monkeypatch.setattr(verification, "launch", launch)
    (tmp_path / "factory.py").write_text(FACTORY)
    name = f"{tmp_path / 'factory.py'}:make"
    source = load_source(name)
    model = cast_model(trace(source.model, source.batch, source.loss_fn), "float64")
    (tmp_path / "model.json").write_bytes(dump(model, "plait/model"))
    cluster, pins = load_cluster("local:2"), pin_all("dp=2")
    program = compile_program(plan(model, cluster, PlanOptions(pins=pins)), model, name)

    def job(kind: str) -> Job:
        write_program(program, tmp_path / kind)
        return Job(kind, str(tmp_path / kind), name, str(tmp_path / "model.json"))

    jobs = [job(kind) for kind in ("crash", "good", "wrong")]
    spoil(tmp_path / "crash", "    raise ValueError('spoilt')")
    spoil(tmp_path / "wrong", "    received = tuple(x * (1 + 1e-8) for x in received)")
    crash, good, wrong = verify(jobs, 2, timeout_seconds=120)
    assert good.passed
    assert "spoilt" in crash.failure
    assert not wrong.passed
    assert not wrong.failure
    assert 1e-9 < wrong.loss < 1e-6


def spoil(folder: Path, line: str) -> None:
    """Put a line at the start of the stage's `forward`, after its arguments are bound."""
    path = folder / "stage_0.py"
    path.write_text(
        path.read_text()
        + f"\n\n_forward = forward\n\n\ndef forward(run, *received):\n{line}\n"
        + "    return _forward(run, *received)\n"
    )
