"""What a user fixes: strategies for calls whose names match a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import msgspec

from ..ir.errors import UsageError
from ..ir.model import Model
from ..ir.plan.plan import Memory
from ..ir.plan.strategy import Strategy, parse_strategy
from .candidate import Decision

RANGE = re.compile(r"(.*)\[(\d+)-(\d+)\](.*)")


def matches(glob: str, names: tuple[str, ...]) -> bool:
    """Whether a pattern fits one of a call's names. Besides `*` and `?`, `[2-11]` stands for the
    numbers from 2 to 11."""
    found = RANGE.fullmatch(glob)
    globs = [glob]
    if found is not None:
        before, first, last, after = found.groups()
        globs = [f"{before}{n}{after}" for n in range(int(first), int(last) + 1)]
    return any(fnmatchcase(name, one) for name in names for one in globs)


def call_names(calls: Sequence[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    """The names of calls, given by path and function: the path of its module (`model.layers.3`), its
    function (`block`), its place among the function's calls (`block3`, `block.3`)."""
    seen: dict[str, int] = {}
    for path, function in calls:
        place = seen[function] = seen.get(function, -1) + 1
        yield path, function, f"{function}{place}", f"{function}.{place}"


class Pin(msgspec.Struct, frozen=True):
    """Calls of which a name matches `glob` take a strategy, and a memory action unless it is None."""

    glob: str
    strategy: Strategy
    memory: Memory | None = None


def everywhere(word: str) -> tuple[Pin, ...]:
    """One strategy for all layers."""
    return (Pin("*", parse_strategy(word)),)


def parse_pin(text: str) -> Pin:
    """`GLOB:WORD`, or `WORD` for all layers; raises UsageError naming what is wrong with the word."""
    glob, colon, word = text.rpartition(":")
    return Pin(glob if colon else "*", parse_strategy(word))


def pinned(model: Model, pins: tuple[Pin, ...]) -> tuple[Pin | None, ...]:
    """The last pin that matches each call. Raises UsageError for a pin that matches none."""
    found: list[Pin | None] = []
    used: set[str] = set()
    for names in call_names([(call.path, call.function) for call in model.calls]):
        matching = [pin for pin in pins if matches(pin.glob, names)]
        used.update(pin.glob for pin in matching)
        found.append(matching[-1] if matching else None)
    idle = [pin.glob for pin in pins if pin.glob not in used]
    if idle:
        known = ", ".join(dict.fromkeys(call.path or call.function for call in model.calls))
        raise UsageError(f"pin {idle[0]!r} matches no layer; there are: {known:.300}")
    return tuple(found)


def decisions(
    model: Model, pins: tuple[Pin | None, ...], rest: Strategy, memory: Memory
) -> tuple[Decision, ...]:
    """Decisions for all calls: `rest` and `memory` where nothing is pinned. Calls that follow from
    the batch alone do as the first of the others."""
    once = model.once()
    chosen = [(pin.strategy if pin else rest, (pin and pin.memory) or memory) for pin in pins]
    first = next((c for i, c in enumerate(chosen) if i not in once), (rest, memory))
    made: list[Decision] = []
    for i, choice in enumerate(chosen):
        choice = first if i in once else choice
        if made and (made[-1].strategy, made[-1].memory) == choice:
            made[-1] = Decision(made[-1].first, i + 1, *choice)
        else:
            made.append(Decision(i, i + 1, *choice))
    return tuple(made)
