"""Temporary folders that are removed also where the process that made them was killed.

A process locks each of its folders for as long as it lives; whoever makes the next folder of a kind
removes those that nobody has locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "plait-"
LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder(kind: str) -> Iterator[Path]:
    """A folder `plait-KIND-…` among the user's temporary files; removed at the end."""
    remove_abandoned(kind)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-"))
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)  # a forked process shares it
            (folder / "lock").rename(folder / LOCK)  # nobody sees it unlocked
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(kind: str) -> None:
    """Remove the folders of a kind whose process is gone."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}{kind}-*/{LOCK}"):
        with contextlib.suppress(OSError):
            if lock.stat().st_uid == os.getuid() and _is_free(lock):
                shutil.rmtree(lock.parent, ignore_errors=True)


def _is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
