"""Temporary folders end with their process, however that ends."""

import os
import signal
import subprocess
import sys

import pytest

from plait.runtime.launch.scratch import scratch_folder

HOLD = """
import signal
from plait.runtime.launch.scratch import scratch_folder
with scratch_folder("test") as folder:
    print(folder, flush=True)
    signal.pause()
"""


@pytest.fixture(autouse=True)
def _temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_folder_is_gone_at_the_end(tmp_path):
    with scratch_folder("test") as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path
    assert not folder.exists()


def test_folders_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    killed, living = (tmp_path / holder.stdout.readline().strip() for holder in holders)
    try:
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        assert killed.exists()
        with scratch_folder("test"), scratch_folder("another"):
            assert not killed.exists()
            assert living.exists()
    finally:
        holders[1].kill()
        for holder in holders:
            holder.communicate()
