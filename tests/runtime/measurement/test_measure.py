"""The machine is measured on all ranks at once, and the file plans."""

import json

import pytest

from plait.api.cli import main
from plait.runtime.measurement import measure, samples
from plait.tests.paths import LLAMA

torch = pytest.importorskip("torch")


def test_every_sample_runs_and_says_how_much_it_does(monkeypatch):
    monkeypatch.setattr(samples, "QUICK_BYTES", (4096,))
    monkeypatch.setattr(samples, "CACHE_BYTES", 1)
    names = set()
    for sample in samples.samples(torch.device("cpu"), True):
        for call in sample.calls:
            call()
        assert sample.amount > 0
        names.add(sample.name)
    assert {"gemm", "attention", "attention_backward", "pointwise", "reduce", "adamw"} <= names


def test_a_longer_call_takes_longer():
    clock = measure.Clock(torch.device("cpu"), 0.02)
    small, large = (torch.randn(n, n) for n in (16, 512))
    assert clock.each([lambda: small @ small]) < clock.each([lambda: large @ large])


@pytest.mark.ranks
@pytest.mark.long
def test_this_machine_is_measured_and_planned_for(tmp_path, capsys):
    machine = str(tmp_path / "machine.toml")
    assert main(["calibrate", "--quick", "--ranks", "2", "-o", machine, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["ranks"] == 2
    assert figures["time_s"] < 120
    assert main(["plan", LLAMA, "--cluster", machine, "--pin", "*:dp=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step_time_s"] > 0
