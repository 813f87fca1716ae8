"""Wheels and source archives are the same bytes, whatever the machine."""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from plait.tests.paths import ROOT

BUILD = """
import os, sys
os.umask(int(sys.argv[1], 8))
sys.path.insert(0, "packaging")
import backend
getattr(backend, sys.argv[3])(sys.argv[2])
"""


def built(source: Path, into: Path, umask: str, epoch: str) -> dict[str, str]:
    """Digests of the archives of a copy of the source, copied under a umask."""
    command = f'umask {umask}; cp -r "$0" "$1"'  # modes of files follow the umask, as in a clone
    subprocess.run(["sh", "-c", command, str(source), str(into / "plait")], check=True)
    for path in (into / "plait").rglob("*"):
        path.chmod(path.stat().st_mode & (0o777 ^ int(umask, 8)))
    out = into / "out"
    out.mkdir()
    for hook in ("build_sdist", "build_wheel"):
        subprocess.run(
            [sys.executable, "-c", BUILD, umask, str(out), hook],
            cwd=into / "plait",
            env={**os.environ, "SOURCE_DATE_EPOCH": epoch},
            check=True,
            capture_output=True,
        )
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}


@pytest.mark.long
def test_archives_are_the_same_under_any_umask(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*")
    )
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
    first = built(source, folders[0], "022", "1700000000")
    assert len(first) == 2
    assert built(source, folders[1], "077", "1700000000") == first
    assert built(source, folders[2], "022", "1800000000") != first
