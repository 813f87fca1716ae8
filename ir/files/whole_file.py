"""Write a file whole or not at all: a reader, or a kill, in the middle never meets a part of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write or replace a file in one step. Raises OSError; then the old file stays as it was."""
    with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as scratch:
        complete = Path(scratch) / "complete"
        complete.write_bytes(data)
        os.replace(complete, path)
