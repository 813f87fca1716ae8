"""The commands of the README run as they are written, in a folder that has the examples."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from plait.tests.paths import ROOT
from plait.tests.test_docs import code_lines

COMMANDS = [
    line
    for line in code_lines((ROOT / "README.md").read_text(encoding="utf-8"))
    if line.startswith("plait ")
]


@pytest.mark.long
def test_commands_of_the_readme_run(tmp_path: Path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    assert len(COMMANDS) >= 8
    for line in COMMANDS:
        command = [sys.executable, "-m", "plait", *shlex.split(line)[1:]]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
    assert (tmp_path / "plan.html").exists()
