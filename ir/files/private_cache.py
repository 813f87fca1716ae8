"""The user's private cache: directories that nobody else can write to, entries with a digest."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from ..errors import FileError
from .whole_file import write_whole

DIGEST_BYTES = 32


def private(directory: Path) -> None:
    """Create a directory that only its owner can write to. Raises FileError if that fails."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise FileError(f"{directory} cannot be made: {error.strerror}") from error
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise FileError(
            f"{directory} can be written by others, so what is in it is not to be trusted: "
            f"give a directory of your own (mode 0700)"
        )


class PrivateCache:
    """Maps a key text to bytes, one file each: SHA-256 digest, then the bytes.

    `most`: entries that are kept, the last used; None for all. Raises FileError for a directory that
    other users can write to.
    """

    def __init__(self, directory: Path, most: int | None = None) -> None:
        private(directory)
        self.directory, self.most = directory, most

    def get(self, key: str) -> bytes | None:
        """Return the bytes of `key`; None where the file is absent or damaged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, value = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        return value if digest == sha256(value).digest() else None

    def put(self, key: str, value: bytes) -> None:
        """Keep the bytes of `key`, whole or not at all; raises OSError where they cannot be written."""
        write_whole(self._path(key), sha256(value).digest() + value)
        if self.most is not None:
            self._drop_oldest(self.most)

    def try_put(self, key: str, value: bytes) -> None:
        """As `put`; a value that cannot be written is not kept."""
        with suppress(OSError):
            self.put(key, value)

    def _drop_oldest(self, most: int) -> None:
        files = [path for path in self.directory.iterdir() if path.is_file()]
        files.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in files[: max(len(files) - most, 0)]:
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.directory / sha256(key.encode()).hexdigest()
