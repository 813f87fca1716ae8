"""A compiled program goes on, on fewer ranks than it was compiled for, from its checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plait.api.cli import main
from plait.tests.paths import ROOT

SOURCE = "plait.benchmarks.composition_models:language"


def losses(folder: Path, *arguments: str) -> dict[int, float]:
    """Run a program as users do; gives its losses by step."""
    done = subprocess.run(
        [sys.executable, "-m", "plait", "run", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["step"]: row["loss"] for row in rows}


@pytest.mark.long
@pytest.mark.ranks
def test_a_program_goes_on_with_fewer_ranks(tmp_path: Path, capsys) -> None:
    plan, program = tmp_path / "plan.json", tmp_path / "program"
    assert main(["plan", SOURCE, "--cluster", "local:2", "-o", str(plan)]) == 0
    assert main(["compile", str(plan), SOURCE, "-o", str(program)]) == 0
    plain = losses(tmp_path, str(program), "--", "--steps", "8")
    arguments = ["--", "--checkpoint-every", "2", "--keep", "1"]
    first = losses(tmp_path, str(program), *arguments, "--steps", "4")
    second = losses(tmp_path, "--ranks", "1", str(program), *arguments, "--steps", "8")
    assert (sorted(first), sorted(second)) == ([0, 1, 2, 3], [4, 5, 6, 7])
    for step, loss in (first | second).items():
        assert loss == pytest.approx(plain[step], rel=1e-4)
    assert len(list((program / "checkpoint").glob("generation-*"))) == 1
