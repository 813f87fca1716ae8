"""`plait pack`: buffers from a CSV file, or those of a plan's stages, their offsets into another."""

from __future__ import annotations

import argparse
import csv
import io
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ...ir.errors import FileError, InfeasibleError, UsageError
from ...ir.plan.allocation import Buffer, Packing
from ...ir.text.printer import gib
from ..files import write_text
from ..units import parse_bytes
from .common import TIME_LIMIT, show

COLUMNS = ("id", "lower", "upper", "size")
SECONDS, PLAN_SECONDS = 60.0, 10.0  # limits where none is asked for
LARGEST = 1 << 53  # of a time or the sum of all sizes: no arithmetic goes beyond it


def read_buffers(path: Path) -> list[Buffer]:
    """Buffers of a CSV file with the columns id, lower, upper and size, in any order.

    Other columns are ignored. Raises FileError naming the line and what is wrong with it.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            found = list(_rows(file, path))
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise FileError(f"{path}: not CSV: {error}") from None
    if sum(b.size for b in found) > LARGEST:
        raise FileError(f"{path}: the sizes add up to more than {LARGEST}")
    return found


def _rows(file: TextIO, path: Path) -> Iterator[Buffer]:
    lines = csv.reader(file, strict=True)
    header = next(lines, [])
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
    _write(path, (*COLUMNS, "offset"), _rows_of(buffers, packing))


def _rows_of(buffers: Sequence[Buffer], packing: Packing) -> Iterator[tuple[object, ...]]:
    for b, offset in zip(buffers, packing.offsets, strict=True):
        yield b.name, b.lower, b.upper, b.size, offset


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def run(options: argparse.Namespace) -> int:
    """Exit codes: 3 where nothing fits the capacity, 4 where time was up before anything did."""
    of_plan = options.buffers.endswith(".json")
    seconds = options.time_limit
    if seconds is None:
        seconds = PLAN_SECONDS if of_plan else SECONDS
    if not seconds >= 0:
        raise UsageError(f"--time-limit {seconds} is not a number of seconds")
    capacity = None if options.capacity is None else parse_bytes(options.capacity)
    if of_plan:
        return _plan(options, capacity, seconds)
    if capacity is None:
        raise UsageError("pack: --capacity is missing: the bytes of the arena")
    return _buffers(options, capacity, seconds)


def _buffers(options: argparse.Namespace, capacity: int, limit_seconds: float) -> int:
    from ...planner.allocation.arena import pack

    buffers = read_buffers(Path(options.buffers))
    start = time.perf_counter()
    made = pack(buffers, capacity, time_limit_seconds=limit_seconds, minimise=options.minimise)
    seconds = time.perf_counter() - start
    if made.status != "infeasible":
        write_offsets(Path(options.output), buffers, made)
    if options.json:
        show(_figures(made) | {"capacity": capacity, "time_s": seconds})
    else:
        print(f"{options.output}: {made}")
    return _code([made], capacity)


def _figures(made: Packing) -> dict[str, Any]:
    return {
        "status": made.status,
        "buffers": len(made.offsets),
        "peak": made.peak_bytes,
        "lower_bound": made.bound_bytes,
        "gap": made.gap,
    }


def _code(found: Sequence[Packing], capacity: int | None) -> int:
    """Raises InfeasibleError where buffers cannot fit the capacity."""
    worst = max(found, key=lambda made: made.bound_bytes)
    if capacity is not None and worst.status == "infeasible":
        raise InfeasibleError(
            f"the buffers need at least {worst.bound_bytes} bytes, {worst.bound_bytes - capacity} more "
            f"than the capacity of {capacity}; a capacity of {worst.peak_bytes} is enough"
        )
    return TIME_LIMIT if any(made.status == "unknown" for made in found) else 0


class Arena(NamedTuple):
    """The buffers of a stage with their addresses; `promised` bytes for them are in the plan."""

    stage: int
    buffers: tuple[Buffer, ...]
    packing: Packing
    promised: int

    def __str__(self) -> str:
        made = self.packing
        ratio = made.peak_bytes / made.bound_bytes if made.bound_bytes else 1.0
        return (
            f"stage {self.stage}: {len(self.buffers)} buffers, live {gib(made.bound_bytes)}, arena "
            f"{gib(made.peak_bytes)} ({ratio:.2%}), promised {gib(self.promised)}"
        )


def _plan(options: argparse.Namespace, capacity: int | None, limit_seconds: float) -> int:
    from ...cost_model.explain.memory_terms import working_bytes
    from ...planner.allocation.repeated_layers import stack
    from ...planner.allocation.stage_buffers import plan_buffers
    from ..plan_object import load_plan
    from .diff import model_of

    plan = load_plan(Path(options.buffers))
    model, arenas = model_of(plan, options), list[Arena]()
    start = time.perf_counter()
    for number, found in enumerate(plan_buffers(plan, model)):
        left = max(0.0, limit_seconds - (time.perf_counter() - start))
        made = stack(
            found.buffers,
            found.cuts,
            capacity,
            minimise=options.minimise,
            time_limit_seconds=left / (len(plan.stages) - number),
        )
        arenas.append(Arena(number, found.buffers, made, working_bytes(plan, number)))
    packings = [arena.packing for arena in arenas]
    if all(made.status != "infeasible" for made in packings):
        rows = ((a.stage, *row) for a in arenas for row in _rows_of(a.buffers, a.packing))
        _write(Path(options.output), ("stage", *COLUMNS, "offset"), rows)
    if options.json:
        stages = [{"stage": a.stage, **_figures(a.packing), "promised": a.promised} for a in arenas]
        show({"stages": stages, "capacity": capacity, "time_s": time.perf_counter() - start})
    else:
        print(*arenas, sep="\n")
    return _code(packings, capacity)
