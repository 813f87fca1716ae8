"""The acceptance kit for GPUs says what could not run, and of every check how it went."""

import subprocess
import sys
import time

import pytest
import torch

from plait.benchmarks.gpu_check.check import CannotRun, Check, Machine, row, run, table
from plait.tests.paths import ROOT

SCRIPT = str(ROOT / "benchmarks" / "gpu_check.py")


def machine(devices: int = 1, seconds: float = 60.0) -> Machine:
    return Machine("cpu", devices, time.monotonic() + seconds)


def passing(_: Machine):
    yield row("one", "≤ 2", "1", True)
    yield row("two", "≤ 2", "3", False)


def raising(_: Machine):
    yield row("begun", "≤ 2", "1", True)
    raise ValueError("many\nlines")


def lacking(_: Machine):
    raise CannotRun("no tool")
    yield


def test_every_check_gives_rows_whatever_happens() -> None:
    checks = [
        Check("good", "", passing, 1),
        Check("bad", "bar", raising, 1),
        Check("bare", "bar", lacking, 1),
        Check("many", "bar", passing, 2),
    ]
    rows = list(run(checks, machine()))
    assert [(r.name, r.state) for r in rows] == [
        ("one", "passed"),
        ("two", "failed"),
        ("begun", "passed"),
        ("bad", "failed"),
        ("bare", "could not run"),
        ("many", "could not run"),
    ]
    assert "ValueError: lines" in rows[3].measured
    assert rows[4].measured == "no tool"
    assert len(list(table(rows))) == 2 + len(rows)
    late = list(run(checks[:1], machine(seconds=-1.0)))
    assert [(r.name, r.state) for r in late] == [("good", "could not run")]


@pytest.mark.long
@pytest.mark.ranks
def test_all_of_it_runs_on_a_cpu_but_for_what_needs_a_gpu() -> None:
    command = [sys.executable, SCRIPT, "--rehearse"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20, done.stderr
    assert done.returncode == 0, [line for line in rows if "| failed |" in line]
    assert sum("could not run" in r for r in rows) == 3  # two need a GPU, one needs two


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.long
def test_without_a_gpu_it_is_skipped() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "skipped")
