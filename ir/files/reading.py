"""The door that files come through: bytes of bounded size, errors that name the file."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ..errors import FileError
from .json_files import MOST_BYTES, load

T = TypeVar("T")


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Errors of the system and of what is read become FileErrors that begin with the path."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from error
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
    except ValueError as error:  # a path with a NUL byte or half a character
        raise FileError(f"{str(path)!r:.200}: {error}") from None


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file; raises FileError where it is too large, is no file or cannot be read."""
    with naming(path):
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise FileError(f"larger than {most} bytes")
        return data


def read_verified(path: Path, kind: type[T], format_: str, verify: Callable[[T], None]) -> T:
    """A value of one format that `verify` finds no fault with; raises FileError naming the file and the
    JSON path."""
    data = read_bytes(path)
    with naming(path):
        value = load(data, kind, format_)
        verify(value)
        return value
