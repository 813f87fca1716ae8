"""A disk that fails: the n-th operation on files below a folder raises what the system would raise.

`python -m plait.tests.faults.disk` fails every operation of saving and loading a checkpoint once with
each error: what comes is a PlaitError, and the generation before it is there.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from plait.ir.errors import PlaitError
from plait.runtime.checkpoint import generations
from plait.runtime.comm.process_group import Group
from plait.runtime.comm.watchdog import Watchdog
from plait.runtime.launch.session import session
from plait.runtime.state.local_tensor import whole

ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS)
CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "open", "scandir")
ALONE = Group("all ranks", (0,), Watchdog(0), None, Counter())


class Disk:
    """Counts operations on files below a folder; number `fails` raises `code`, and so do all after it
    where the disk stays broken."""

    def __init__(self, folder: Path, fails: int = -1, code: int = 0, stays: bool = False) -> None:
        self.folder, self.fails, self.code, self.stays = str(folder), fails, code, stays
        self.count, self.open = 0, io.open

    def operate(self) -> None:
        number, self.count = self.count, self.count + 1
        if self.fails >= 0 and (number == self.fails or (self.stays and number > self.fails)):
            raise OSError(self.code, os.strerror(self.code))

    def opened(self, file: Any, mode: str = "r", *settings: Any, **more: Any) -> Any:
        stream = self.open(file, mode, *settings, **more)
        if isinstance(file, int) or not os.fspath(file).startswith(self.folder):
            return stream
        try:
            self.operate()
        except OSError:
            stream.close()
            raise
        return File(stream, self)

    def called(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Any, *settings: Any, **more: Any) -> Any:
            if isinstance(path, int) or os.fspath(path).startswith(self.folder):
                self.operate()
            return call(path, *settings, **more)

        return checked


class File:
    """An open file on such a disk."""

    def __init__(self, stream: Any, disk: Disk) -> None:
        self.stream, self.disk = stream, disk

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.stream, name)
        if name not in ("read", "readinto", "readline", "write", "flush", "truncate"):
            return value

        def checked(*arguments: Any) -> Any:
            self.disk.operate()
            return value(*arguments)

        return checked

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


@contextmanager
def failing(disk: Disk) -> Iterator[None]:
    """Operations go to the disk inside."""
    with mock.patch("io.open", disk.opened), mock.patch("builtins.open", disk.opened):
        patches = [mock.patch(f"os.{name}", disk.called(getattr(os, name))) for name in CALLS]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


def save(folder: Path, steps: int) -> None:
    tensors = {"model/w": whole(torch.full((4, 3), float(steps)))}
    manifest = generations.Manifest("toy", steps, 0, "AdamW", {}, {}, ())
    generations.save(ALONE, folder, tensors, manifest)


def load(folder: Path) -> int:
    manifest, tensors = generations.read_all(ALONE, folder)
    assert torch.equal(tensors["model/w"], torch.full((4, 3), float(manifest.steps)))
    return manifest.steps


def survive(root: Path, every: int = 1) -> Counter[str]:
    """Fail each operation (or every n-th) of a save and a load; counts what came of it."""
    outcomes = Counter[str]()
    for what in (lambda f: save(f, 2), load):
        sound = root / f"sound {len(outcomes)}"
        save(sound, 1)
        with failing(counted := Disk(sound)):
            what(sound)
        assert counted.count > 5
        for number in range(0, counted.count, every):
            for code in ERRORS:
                folder = root / f"{len(outcomes)} {number} {code}"
                save(folder, 1)
                outcomes[fail(folder, Disk(folder, number, code, stays=number % 2 == 1), what)] += 1
                assert load(folder) in (1, 2)
    return outcomes


def fail(folder: Path, disk: Disk, what: Callable[[Path], Any]) -> str:
    """Do it on a failing disk; gives `refused`, `done`, or what an error said that does not name
    the folder; raises whatever else comes."""
    try:
        with failing(disk):
            what(folder)
    except PlaitError as error:
        return "refused" if str(folder) in str(error) else f"misnamed: {error}"
    return "done"  # what failed was no more than the removal of old generations


def main() -> None:
    with session("gloo"), tempfile.TemporaryDirectory(prefix="plait-disk-") as root:
        outcomes = survive(Path(root))
    print(f"{outcomes.total()} faults: {dict(outcomes)}")


if __name__ == "__main__":
    main()
