"""Verification on real ranks: agreement, a wrong number and a crash are told apart."""

from collections.abc import Callable
from pathlib import Path

import pytest

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.ir.errors import FileError
from plait.ir.files.json_files import dump
from plait.ir.lowering.cast import cast_model
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.launch.launch import launch
from plait.runtime.verification import verify as verification
from plait.runtime.verification.verify import Job, RankError, verify

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

ONE_RANK_RAISES = """
    import os
    from plait.ir.errors import FileError
    if os.environ["RANK"] == "1":
        raise FileError("spoilt")
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Job]:
    """`job(kind)`: a program of the factory's module in a folder of its own, to be verified."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "factory.py").write_text(FACTORY)
    name = f"{folder / 'factory.py'}:make"
    source = load_source(name)
    model = cast_model(trace(source.model, source.batch, source.loss_fn), "float64")
    (folder / "model.json").write_bytes(dump(model, "plait/model"))
    cluster, pins = load_cluster("local:2"), pin_all("dp=2")
    program = compile_program(plan(model, cluster, PlanOptions(pins=pins)), model, name)

    def of(kind: str) -> Job:
        write_program(program, folder / kind)
        return Job(kind, str(folder / kind), name, str(folder / "model.json"))

    return of


@pytest.mark.ranks
def test_a_wrong_number_is_no_failure(job, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ranks that torchrun starts, as users' are."""
    monkeypatch.setattr(verification, "launch", launch)
    spoilt = job("wrong")
    spoil(spoilt, "    received = tuple(x * (1 + 1e-8) for x in received)")
    (wrong,) = verify([spoilt], 2, timeout_seconds=120)
    assert not wrong.passed
    assert not wrong.failure
    assert 1e-9 < wrong.loss < 1e-6


@pytest.mark.ranks
def test_jobs_after_a_crash_go_on(job) -> None:
    spoilt = job("crash")
    spoil(spoilt, ONE_RANK_RAISES)
    crash, good = verify([spoilt, job("good")], 2, timeout_seconds=120)
    assert "spoilt" in crash.failure
    with pytest.raises(RankError, match=r"^crash: rank 1 raised FileError: spoilt$") as raised:
        crash.require()
    assert raised.value.exit_code == FileError.exit_code
    assert good.passed


def spoil(job: Job, line: str) -> None:
    """Put a line at the start of the stage's `forward`, after its arguments are bound."""
    path = Path(job.folder, "stage_0.py")
    path.write_text(
        path.read_text()
        + f"\n\n_forward = forward\n\n\ndef forward(run, *received):\n{line}\n"
        + "    return _forward(run, *received)\n"
    )
