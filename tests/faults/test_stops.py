"""SIGTERM to `plait run` ends all ranks, after a checkpoint where asked, also when one is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plait.runtime.checkpoint.generations import generations
from plait.tests.runtime import toy

MAIN = """
import os, sys, time
from pathlib import Path
from plait.runtime.launch.session import session
from plait.runtime.launch.signals import stop_on_sigterm
from plait.runtime.program import Program
from plait.tests.runtime import toy

folder = Path(__file__).parent
with session("gloo") as rank:
    program = Program.open(folder, toy.model(), optimizer_args={"lr": 0.1})
    with stop_on_sigterm(program.request_stop):
        while not program.stopping:
            program.step(toy.batch(program.batches))
            (folder / f"pid_{rank}").write_text(str(os.getpid()))
            time.sleep(0.02)
        program.save(folder / "checkpoint")
"""
SECONDS = 60


def started(folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A run of two ranks that are training, and the ranks' processes."""
    toy.write(folder, toy.table({"dp": 2}, 1))
    (folder / "main.py").write_text(MAIN)
    with (folder / "output").open("wb") as output:
        command = [sys.executable, "-m", "plait", "run", str(folder)]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    files, deadline = [folder / f"pid_{rank}" for rank in range(2)], time.monotonic() + SECONDS
    while not all(f.exists() and f.read_text() for f in files):
        assert process.poll() is None, (folder / "output").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, [int(f.read_text()) for f in files]


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.ranks
def test_sigterm_ends_a_run_after_a_checkpoint(tmp_path: Path) -> None:
    process, pids = started(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.wait(SECONDS)
    assert not living(pids)
    (generation,) = generations(tmp_path / "checkpoint")
    assert generation.name == "generation-00000001"


@pytest.mark.ranks
@pytest.mark.long
def test_sigterm_ends_a_run_in_which_a_rank_is_stopped(tmp_path: Path) -> None:
    process, pids = started(tmp_path)
    os.kill(pids[1], signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    process.wait(SECONDS)
    assert not living(pids)
    assert not generations(tmp_path / "checkpoint")
