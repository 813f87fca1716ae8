"""`plait verify`: with a factory, with a model file, and `--fuzz`."""

import json
from pathlib import Path

import pytest

from plait.api.cli import main

FACTORY = """
import torch
from torch import nn


def make():
    parts = ((nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8)) for _ in range(2))
    layers = (nn.Sequential(*part) for part in parts)
    return nn.Sequential(*layers), (torch.randn(8, 8),), lambda output, batch: output.square().mean()
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("verify") / "factory.py"
    file.write_text(FACTORY)
    return f"{file}:make"


@pytest.mark.ranks
def test_a_model_file_is_interpreted_aloud(source: str, tmp_path: Path, capsys) -> None:
    plan_file, file = str(tmp_path / "plan.json"), str(tmp_path / "model.json")
    assert main(["plan", source, "--cluster", "local:2", "--pin=dp=2", "-o", plan_file]) == 0
    assert main(["trace", source, "-o", file]) == 0
    capsys.readouterr()
    assert main(["verify", plan_file, file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert "interprets the trace" in found["notes"][0]


@pytest.mark.ranks
def test_fuzz_verifies_random_programs(source: str, capsys) -> None:
    assert main(["verify", source, "--fuzz", "4", "--ranks", "2", "--seed", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tried"], found["mismatches"], len(found["outcomes"])) == (4, 0, 4)
    assert found["refused"] < 4


def test_fuzz_and_a_plan_exclude_each_other(source: str, capsys) -> None:
    assert main(["verify", "plan.json", source, "--fuzz", "4"]) == 2
    assert main(["verify", source]) == 2
    assert "--fuzz" in capsys.readouterr().err
