"""Mutants of files: one or two fields changed, removed, doubled or swapped, in JSON, TOML, JSON lines.

Fields are taken in turn by their path without indices, so that rare ones come up as often as those of
long lists.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

HUGE_INTEGER = "huge integer"  # stands for 5,000 digits, which `json.dumps` does not write
DUPLICATE = "duplicate key"
DEEP = "deep nesting"
# fmt: off
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 99, 1 << 31, 1 << 40, 10**15, 1 << 62, -(1 << 62), 1 << 64, 0.5,
    1.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), HUGE_INTEGER, DEEP, "", "x", "sideways", "R",
    "keep", "../../etc/passwd", "float:nan", "dtype:float99", "\ud800", "\x00", "line\nbreak", "é" * 300,
    "y" * 100_000, [], {}, [[]], [None], ["a", 1], [1, 2, 3], {"value": 0}, {"format": 1}, [["tp", -2]],
)
ODD_TOML = (
    "-1", "0", "1", "99", "1e15", "1000000000000000", "1e400", "nan", "inf", "-inf", "true", '""', '"x"',
    "[]", "{}", "[1, 2]", "9" * 5000, '"' + "y" * 100_000 + '"', "[" * 3000 + "]" * 3000, "1979-05-27",
    '"\\ud800"', "1e-300", "0.5", "{a = 1}", '[{a = 1}]',
)
# fmt: on
Path = tuple[str | int, ...]


class Mutant(NamedTuple):
    """A mutant's bytes and what was done to the sound file."""

    data: bytes
    change: str


def fields(data: Any, path: Path = ()) -> Iterator[Path]:
    """The paths of all values inside a JSON value."""
    pairs: Any = ()
    if isinstance(data, dict):
        pairs = data.items()
    elif isinstance(data, list):
        pairs = enumerate(data)
    for key, item in pairs:
        yield (*path, key)
        yield from fields(item, (*path, key))


def by_shape(data: Any) -> list[list[Path]]:
    """Paths, those that differ in indices alone together."""
    shapes: dict[Path, list[Path]] = {}
    for path in fields(data):
        shapes.setdefault(tuple("*" if isinstance(k, int) else k for k in path), []).append(path)
    return list(shapes.values())


def json_mutants(sound: bytes, dice: random.Random) -> Iterator[Mutant]:
    """Mutants of a JSON file without end."""
    text = sound.decode()
    shapes = by_shape(json.loads(text))
    turn = 0
    while True:
        data = json.loads(text)
        changes = []
        for _ in range(1 if dice.random() < 0.85 else 2):
            paths, turn = shapes[turn % len(shapes)], turn + 1
            changes.append(_change(data, dice.choice(paths), paths, dice))
        yield Mutant(_written(data), "; ".join(changes))


def _written(data: Any) -> bytes:
    text = json.dumps(data)
    text = text.replace(f'"{HUGE_INTEGER}"', "7" * 5000).replace(
        f'"{DEEP}"', "[" * 5000 + "]" * 5000
    )
    return text.replace(f'"{DUPLICATE}": 0', '"format": 0, "format": 0').encode()


def _at(data: Any, path: Path) -> tuple[Any, Any]:
    """The container of a path and the key in it, or (None, None) once a first change removed it."""
    for key in path[:-1]:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return None, None
    last = path[-1]
    if isinstance(data, dict):
        there = last in data
    else:
        there = isinstance(data, list) and isinstance(last, int) and last < len(data)
    return (data, last) if there else (None, None)


def _change(data: Any, path: Path, same_keys: list[Path], dice: random.Random) -> str:
    """Change one field in place; says what was done."""
    spot, key = _at(data, path)
    where = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path)
    if spot is None:
        return f"{where} is gone"
    change = dice.choice(CHANGES)
    what = change(spot, key, dice, [_value(data, p) for p in dice.choices(same_keys, k=2)])
    return f"{where}: {change.__name__} {what}"[:200]


def _value(data: Any, path: Path) -> Any:
    spot, key = _at(data, path)
    return None if spot is None else spot[key]


def odd(spot: Any, key: Any, dice: random.Random, same_keys: list[Any]) -> str:
    spot[key] = dice.choice(ODD)
    return repr(spot[key])[:60]


def tweak(spot: Any, key: Any, dice: random.Random, same_keys: list[Any]) -> str:
    """A value that is near the sound one, or what another field of this kind has."""
    old = spot[key]
    if isinstance(old, bool):
        spot[key] = not old
    elif isinstance(old, int | float):
        spot[key] = dice.choice((-old, old + 1, old - 1, old * 2, old * 1000, 0, old / 2, int(old)))
    elif isinstance(old, str) and old:
        at = dice.randrange(len(old))
        spot[key] = dice.choice(
            (old[:at], old[:at] + dice.choice("x0=,.-9 ") + old[at + 1 :], old * 2)
        )
    else:
        spot[key] = dice.choice(same_keys)
    return f"{old!r:.40} -> {spot[key]!r:.40}"


def swap(spot: Any, key: Any, dice: random.Random, same_keys: list[Any]) -> str:
    """The value of a field like it, or of a neighbour."""
    others = list(spot.values()) if isinstance(spot, dict) else list(spot)
    spot[key] = dice.choice([*same_keys, *same_keys, dice.choice(others)])
    return repr(spot[key])[:60]


def remove(spot: Any, key: Any, dice: random.Random, same_keys: list[Any]) -> str:
    del spot[key]
    return ""


def double(spot: Any, key: Any, dice: random.Random, same_keys: list[Any]) -> str:
    if isinstance(spot, list):
        spot.insert(key, spot[key])
    else:
        spot[dice.choice((DUPLICATE, "surprise", "\ud800"))] = 0
    return ""


CHANGES: tuple[Callable[..., str], ...] = (odd, odd, tweak, tweak, swap, remove, double)
SETTING = re.compile(r"^(\s*[\w.\"-]+\s*=\s*)(.+)$")


def toml_mutants(sound: bytes, dice: random.Random) -> Iterator[Mutant]:
    """Mutants of a TOML file without end, line by line."""
    lines = sound.decode().splitlines()
    turn = 0
    while True:
        changed, changes = list(lines), []
        for _ in range(1 if dice.random() < 0.85 else 2):
            at, turn = turn % len(lines), turn + 1
            if at < len(changed):
                changes.append(_change_line(changed, at, dice))
        yield Mutant("\n".join(changed).encode("utf-8", "surrogatepass"), "; ".join(changes))


def _change_line(lines: list[str], at: int, dice: random.Random) -> str:
    old, setting = lines[at], SETTING.match(lines[at])
    kind = dice.choice(("value", "value", "value", "remove", "double", "move", "key", "bytes"))
    if kind == "value" and setting:
        lines[at] = setting[1] + dice.choice(ODD_TOML)
    elif kind == "remove":
        del lines[at]
    elif kind == "double":
        lines.insert(at, lines[at])
    elif kind == "move":
        lines.insert(dice.randrange(len(lines)), lines.pop(at))
    elif kind == "bytes" and old:
        place = dice.randrange(len(old))
        lines[at] = old[:place] + dice.choice("[]{}\"'=.9\x00é") + old[place + 1 :]
    else:
        lines[at] = f"surprise = {dice.choice(ODD_TOML)}"
    return f"line {at} {old!r:.60}: {kind}"


def line_mutants(sound: bytes, dice: random.Random) -> Iterator[Mutant]:
    """Mutants of a file of JSON lines without end: one line changes."""
    lines = sound.splitlines()
    sources = [json_mutants(line, dice) for line in lines]
    while True:
        at = dice.randrange(len(lines))
        mutant = next(sources[at])
        changed = [*lines[:at], mutant.data, *lines[at + 1 :]]
        yield Mutant(b"\n".join(changed) + b"\n", f"line {at}{mutant.change}")


def byte_mutants(sound: bytes, dice: random.Random) -> Iterator[Mutant]:
    """Mutants of any file without end: bits flipped, bytes removed or put in, the end lost."""
    while True:
        data, changes = bytearray(sound), []
        for _ in range(dice.randint(1, 3)):
            place = dice.randrange(len(data)) if data else 0
            kind = dice.choice(("flip", "drop", "insert", "end"))
            if kind == "flip" and data:
                data[place] ^= 1 << dice.randrange(8)
            elif kind == "drop":
                del data[place : place + dice.randint(1, 30)]
            elif kind == "insert":
                data[place:place] = dice.choice(
                    (b'"', b"{", b"]", b"9" * 25, b"NaN", b"\x00", b"\\")
                )
            else:
                del data[place:]
            changes.append(f"{kind} at {place}")
        yield Mutant(bytes(data), "; ".join(changes))
