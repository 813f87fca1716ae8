"""The public API as a type checker sees it from outside: a user's project under pyright strict."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plait.tests.paths import ROOT

PROJECT = ROOT / "tests" / "typed_project"


@pytest.mark.long
@pytest.mark.skipif(shutil.which("pyright") is None, reason="no pyright at hand")
def test_a_users_project_is_typed(tmp_path: Path):
    """Nothing of it is unknown; a mistake that is planted in it is found."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "plait").symlink_to(ROOT)
    shutil.copytree(PROJECT, tmp_path / "project")
    settings = {
        "include": ["project"],
        "typeCheckingMode": "strict",
        "extraPaths": ["site"],
        "pythonVersion": "3.11",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    assert faults(tmp_path) == []
    script = tmp_path / "project" / "train.py"
    script.write_text(script.read_text().replace("-> plait.Plan:", "-> plait.Model:"))
    assert any("reportReturnType" in fault for fault in faults(tmp_path))


def faults(folder: Path) -> list[str]:
    command = ["pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [f"{d['range']['start']['line'] + 1}: {d['message']} ({d.get('rule')})" for d in found]
