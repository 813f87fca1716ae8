"""Buffers of known lifetime in CSV files, read, and written with their offsets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ...ir.errors import FileError
from ...ir.plan.allocation import Buffer, Packing
from .files import write_text

COLUMNS = ("id", "lower", "upper", "size")
LARGEST = 1 << 53  # of a time or the sum of all sizes: no arithmetic goes beyond it


def read_buffers(path: Path) -> list[Buffer]:
    """Buffers of a CSV file with the columns id, lower, upper and size, in any order.

    Other columns are ignored. Raises FileError naming the line and what is wrong with it.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            buffers = list(_read_rows(file, path))
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise FileError(f"{path}: not CSV: {error}") from None
    if sum(b.size for b in buffers) > LARGEST:
        raise FileError(f"{path}: the sizes add up to more than {LARGEST}")
    return buffers


def _read_rows(file: TextIO, path: Path) -> Iterator[Buffer]:
    lines = csv.reader(file, strict=True)
    header = next(lines, list[str]())
    places = {name.strip(): place for place, name in enumerate(header)}
    missing = [name for name in COLUMNS if name not in places]
    if missing or len(places) != len(header):
        wrong = f"no column {', '.join(missing)}" if missing else "a column twice"
        raise FileError(f"{path}: line 1: the header names {wrong}; needed: {', '.join(COLUMNS)}")
    seen: set[str] = set()
    for line in lines:
        if line:
            yield _buffer(line, len(header), places, seen, f"{path}: line {lines.line_num}")


def _buffer(
    line: list[str], width: int, places: dict[str, int], seen: set[str], where: str
) -> Buffer:
    if len(line) != width:
        raise FileError(f"{where}: {len(line)} values for {width} columns")
    name = line[places["id"]].strip()
    lower, upper, size = (_number(line[places[c]], f"{where}: {c}") for c in COLUMNS[1:])
    if name in seen:
        raise FileError(f"{where}: id {name!r:.60} appears twice")
    if lower >= upper:
        raise FileError(f"{where}: lower {lower} is not before upper {upper}")
    if size < 0:
        raise FileError(f"{where}: size {size} is negative")
    seen.add(name)
    return Buffer(name, lower, upper, size)


def _number(text: str, where: str) -> int:
    digits = text.strip()
    sound = digits.isascii() and digits.removeprefix("-").isdigit() and len(digits) < 18
    if not sound or abs(int(digits)) > LARGEST:
        raise FileError(f"{where}: {text!r:.60} is not a whole number up to {LARGEST}")
    return int(digits)


def write_offsets(path: Path, buffers: Sequence[Buffer], packing: Packing) -> None:
    """The buffers in their order with a column `offset`; the file is written whole or not at all."""
    write_rows(path, (*COLUMNS, "offset"), buffer_rows(buffers, packing))


def buffer_rows(buffers: Sequence[Buffer], packing: Packing) -> Iterator[tuple[object, ...]]:
    """Rows of `COLUMNS` and the offset."""
    for b, offset in zip(buffers, packing.offsets, strict=True):
        yield b.name, b.lower, b.upper, b.size, offset


def write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, whole or not at all; raises FileError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
