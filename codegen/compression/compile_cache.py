"""A cache of compiler results on disk; entries are verified by their digest."""

from __future__ import annotations

import os
import tempfile
from hashlib import sha256
from pathlib import Path

from ...runtime.compression.backends.native import private

DIGEST_BYTES = 32


class CompileCache:
    """Maps a key text to bytes, one file each: SHA-256 digest, then the bytes.

    Raises BuildError for a directory that other users can write to.
    """

    def __init__(self, directory: Path) -> None:
        private(directory)
        self.directory = directory

    def get(self, key: str) -> bytes | None:
        """Return the bytes of `key`; None where the file is absent or damaged."""
        try:
            data = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        digest, value = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        return value if digest == sha256(value).digest() else None

    def put(self, key: str, value: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
            complete = Path(scratch) / "complete"
            complete.write_bytes(sha256(value).digest() + value)
            os.replace(complete, self._path(key))

    def _path(self, key: str) -> Path:
        return self.directory / sha256(key.encode()).hexdigest()
