"""A compiled program goes on, on fewer ranks than it was compiled for, from its checkpoint."""

import json
import os
import signal
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


@pytest.mark.long
@pytest.mark.ranks
def test_the_others_go_on_when_a_rank_is_asked_to_leave(tmp_path: Path) -> None:
    plan, program = tmp_path / "plan.json", tmp_path / "program"
    pinned = ["--cluster", "local:3", "--pin", "dp=3", "--global-batch", "12"]
    assert main(["plan", SOURCE, *pinned, "-o", str(plan)]) == 0
    assert main(["compile", str(plan), SOURCE, "-o", str(program)]) == 0
    steps = ["--", "--steps", "25"]
    plain = losses(tmp_path, str(program), *steps)
    command = [sys.executable, "-m", "plait", "run", str(program), *steps, "--elastic"]
    seen: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT.parent) as run:
        assert run.stdout is not None
        for row in (json.loads(line) for line in run.stdout if line.startswith("{")):
            seen[row["step"]] = row["loss"]
            if len(seen) == 4:
                os.kill(process_of_rank(1, run.pid), signal.SIGTERM)
    assert run.returncode == 0
    assert sorted(seen) == list(range(25))  # without a checkpoint: from memory
    for step, loss in seen.items():
        assert loss == pytest.approx(plain[step], rel=1e-4)


def process_of_rank(rank: int, torchrun: int) -> int:
    """The process of a rank that torchrun has started."""
    wanted = f"RANK={rank}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == torchrun and wanted in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:  # it has ended
            continue
    raise AssertionError(f"no process of rank {rank}")
