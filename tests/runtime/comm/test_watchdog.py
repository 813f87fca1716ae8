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
from plait.runtime.comm.watchdog import CommunicationError, WatchOptions
from plait.runtime.launch.session import session
from plait.runtime.torch_private import default_store

folder = Path(sys.argv[1])
with session("gloo") as rank:
    pool = GroupPool(rank, WatchOptions(8, folder / "dump"), default_store())
    group = pool.group("tp", ((0, 1, 2),))
    group.all_reduce(torch.ones(4, 8))
    if rank == 1:
        time.sleep(2)  # signs of life
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        group.all_reduce(torch.ones(4, 8))
    except CommunicationError as error:
        (folder / f"{rank}.txt").write_text(str(error))
        while not all((folder / f"{other}.txt").exists() for other in (0, 2)):
            time.sleep(0.1)
        raise
"""


def test_an_error_inside_is_named() -> None:
    with pytest.raises(
        CommunicationError, match=r"rank 3: all_gather over tp .*stopped \(closed\)"
    ):
        with Watchdog(3).watch("all_gather over tp"):
            raise RuntimeError("closed\nC++ frames")


@pytest.mark.ranks
def test_a_stopped_rank_is_named_by_all_others(tmp_path: Path) -> None:
    script = tmp_path / "stopped.py"
    script.write_text(SCRIPT)
    with pytest.raises(LaunchError, match="CommunicationError"):
        launch(3, [str(script), str(tmp_path)], timeout_seconds=60)
    for rank in (0, 2):
        text = (tmp_path / f"{rank}.txt").read_text()
        assert f"rank {rank}: all_reduce over tp of (4, 8) torch.float32 failed after" in text
        assert "rank 1 is missing: no sign of life for" in text
        assert "after all_reduce over tp of (4, 8) torch.float32 (collective 2)" in text
        dump = json.loads((tmp_path / "dump" / f"rank_{rank:05d}.json").read_text())
        assert [r["what"][:10] for r in dump["records"]] == ["making gro", *["all_reduce"] * 2]
        assert dump["records"][-1]["end"] == 0
