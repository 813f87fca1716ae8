"""A launch that fails says which rank and why; one that hangs is ended with all its ranks."""

import subprocess
from pathlib import Path

import pytest

from plait.runtime.launch.launch import LaunchError, RunOptions, launch, torchrun_command
from plait.tests.runtime import toy

SCRIPT = """
import sys, time, os
rank = int(os.environ["RANK"])
print("threads", os.environ["OMP_NUM_THREADS"])
if sys.argv[1] == "fail" and rank == 1:
    raise ValueError("the reason")
if sys.argv[1] != "pass":
    time.sleep(3600)
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "plait_launch_script.py"
    path.write_text(SCRIPT)
    return str(path)


@pytest.mark.ranks
def test_outputs_come_by_rank(script: str) -> None:
    assert launch(2, [script, "pass"], timeout_seconds=60) == ("threads 1\n",) * 2


@pytest.mark.ranks
def test_the_failing_rank_is_named(script: str) -> None:
    with pytest.raises(LaunchError, match=r"(?s)rank 1 ended with:.*ValueError: the reason"):
        launch(2, [script, "fail"], timeout_seconds=60)
    assert not running(script)


@pytest.mark.ranks
def test_a_hang_is_ended_and_leaves_nothing_behind(script: str) -> None:
    with pytest.raises(LaunchError, match="took more than 8 s and were stopped"):
        launch(2, [script, "hang"], timeout_seconds=8)
    assert not running(script)


def test_the_command_of_a_program_has_its_ranks_or_others(tmp_path: Path) -> None:
    toy.write(tmp_path, toy.table({"dp": 2, "tp": 2}, 1))
    arguments = torchrun_command(tmp_path, ["--steps", "3"])
    assert "--nproc-per-node=4" in arguments
    assert arguments[-3:] == [str(tmp_path / "main.py"), "--steps", "3"]
    arguments = torchrun_command(tmp_path, [], RunOptions(ranks=2, restarts=5))
    assert {"--nproc-per-node=2", "--max-restarts=5"} <= set(arguments)


def running(script: str) -> bool:
    return script in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
