"""Results of compilers on disk, by what they follow from; trusted as far as their digest goes."""

from __future__ import annotations

import os
import tempfile
from hashlib import sha256
from pathlib import Path

from ...runtime.compression.backends.native import private

DIGEST_BYTES = 32


class Kept:
    """Bytes by a text that determines them, one file each: digest, then bytes.

    Raises BuildError for a directory that others can write to.
    """

    def __init__(self, directory: Path) -> None:
        private(directory)
        self.directory = directory

    def get(self, key: str) -> bytes | None:
        """None if there is no file, or one that was not written whole by `put`."""
        try:
            data = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        digest, value = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        return value if digest == sha256(value).digest() else None

    def put(self, key: str, value: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
            whole = Path(scratch) / "whole"
            whole.write_bytes(sha256(value).digest() + value)
            os.replace(whole, self._path(key))

    def _path(self, key: str) -> Path:
        return self.directory / sha256(key.encode()).hexdigest()
