"""A rank that loses a peer says which rank it is and what it was doing."""

from pathlib import Path

import pytest

from plait.runtime.comm.watchdog import CommunicationError, watch
from plait.runtime.launch.launch import LaunchError, launch

SCRIPT = """
import sys
import torch
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.launch.session import session

with session("gloo") as rank:
    group = GroupPool(rank).group("tp", ((0, 1),))
    group.all_reduce(torch.ones(4, 8))
    if rank == 1:
        sys.stdout.flush()
        import os
        os._exit(0)  # no failure that torchrun would notice
    group.all_reduce(torch.ones(4, 8))
"""


def test_an_error_inside_is_named() -> None:
    with pytest.raises(CommunicationError, match=r"rank 3: all_gather over tp .*: closed; another"):
        with watch(3, "all_gather over tp"):
            raise RuntimeError("closed\nC++ frames")


@pytest.mark.ranks
def test_a_lost_peer_is_reported_with_rank_and_collective(tmp_path: Path) -> None:
    script = tmp_path / "lost.py"
    script.write_text(SCRIPT)
    message = r"rank 0: all_reduce over tp of \(4, 8\) torch.float32 failed after \d"
    with pytest.raises(LaunchError, match=message):
        launch(2, [str(script)], timeout_seconds=60)
