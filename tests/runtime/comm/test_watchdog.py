"""The rank that is missing is named by all others, with where it was, within the time that was given."""

import json
from pathlib import Path

import pytest

from plait.runtime.comm.watchdog import CommunicationError, Watchdog
from plait.runtime.launch.launch import LaunchError
from plait.tests.ranks import launch

SCRIPT = """
import os, signal, sys, time
import torch
from pathlib import Path
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import WatchOptions
from plait.runtime.launch.session import session
from plait.runtime.torch_private import default_store

folder = Path(sys.argv[1])
with session("gloo") as rank:
    pool = GroupPool(rank, WatchOptions(6, folder / "dump"), default_store())
    group = pool.group("tp", ((0, 1, 2),))
    group.all_reduce(torch.ones(4, 8))
    if rank == 1:
        time.sleep(5)  # longer than a collective waits for a rank that gives no signs of life
    group.all_reduce(torch.ones(4, 8))
    if rank == 1:
        time.sleep(1)  # signs of life
        os.kill(os.getpid(), signal.SIGSTOP)
    group.all_reduce(torch.ones(4, 8))
"""


def test_an_error_inside_is_named() -> None:
    with pytest.raises(
        CommunicationError, match=r"rank 3: all_gather over tp .*stopped \(closed\)"
    ):
        with Watchdog(3).watch("all_gather over tp"):
            raise RuntimeError("closed\nC++ frames")


@pytest.mark.ranks
def test_a_rank_that_works_is_waited_for_and_a_stopped_one_named_by_all_others(
    tmp_path: Path,
) -> None:
    script = tmp_path / "stopped.py"
    script.write_text(SCRIPT)
    with pytest.raises(LaunchError):
        launch(3, [str(script), str(tmp_path)], timeout_seconds=60)
    for rank in (0, 2):
        dump = json.loads((tmp_path / "dump" / f"rank_{rank:05d}.json").read_text())
        assert "rank 1 is missing: no sign of life for" in dump["verdict"]
        assert "after all_reduce over tp of (4, 8) torch.float32 (collective 3)" in dump["verdict"]
        assert [r["what"][:10] for r in dump["records"]] == ["making gro", *["all_reduce"] * 3]
        assert dump["records"][-1]["end"] == 0
