"""Pins: strategies that a user fixes for calls whose names match a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import msgspec

from ...ir.errors import UsageError
from ...ir.model.model import Model
from ...ir.plan.memory_action import MemoryAction
from ...ir.plan.strategy import ROLES, Strategy, parse_strategy
from .candidate import Decision

RANGE = re.compile(r"(.*)\[(\d+)-(\d+)\](.*)")


def matches(glob: str, names: tuple[str, ...]) -> bool:
    """Whether a pattern matches one of a call's names.

    Besides `*` and `?`, `[2-11]` stands for the numbers from 2 to 11.
    """
    number_range = RANGE.fullmatch(glob)
    patterns = [glob]
    if number_range is not None:
        before, first, last, after = number_range.groups()
        patterns = [f"{before}{n}{after}" for n in range(int(first), int(last) + 1)]
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def call_names(calls: Sequence[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    """Names of every call given as (module path, function).

    A call answers to the path of its module (`model.layers.3`), its function (`block`), and its
    position among the function's calls (`block3`, `block.3`).
    """
    seen: dict[str, int] = {}
    for path, function in calls:
        position = seen[function] = seen.get(function, -1) + 1
        yield path, function, f"{function}{position}", f"{function}.{position}"


class Pin(msgspec.Struct, frozen=True):
    """Fixes the strategy of calls that match `glob`, and their memory action unless it is None."""

    glob: str
    strategy: Strategy
    memory: MemoryAction | None = None


def pin_all(strategy_text: str) -> tuple[Pin, ...]:
    """One strategy for all layers."""
    return (Pin("*", parse_strategy(strategy_text)),)


def parse_pin(text: str) -> Pin:
    """Parse `GLOB:STRATEGY`, or `STRATEGY` for all layers; raises UsageError for a bad strategy."""
    glob, colon, strategy_text = text.rpartition(":")
    if glob in ROLES and strategy_text.isdecimal():
        raise UsageError(f"pin {text!r}: write {glob}={strategy_text}")
    return Pin(glob if colon else "*", parse_strategy(strategy_text))


def check_pins(pins: Sequence[Pin], devices: int) -> None:
    """Raises UsageError for pins for another number of devices, or that disagree on stages."""
    for pin in pins:
        if pin.strategy.devices != devices:
            raise UsageError(
                f"pin {pin.strategy} is for {pin.strategy.devices} devices, the cluster has {devices}"
            )
    if len({pin.strategy.stages for pin in pins}) > 1:
        raise UsageError("pins must agree on pp: stages are the same for all layers")


def pin_per_call(model: Model, pins: tuple[Pin, ...]) -> tuple[Pin | None, ...]:
    """The last pin that matches each call. Raises UsageError for a pin that matches none."""
    last_matches: list[Pin | None] = []
    used: set[str] = set()
    for names in call_names([(call.path, call.function) for call in model.calls]):
        matching = [pin for pin in pins if matches(pin.glob, names)]
        used.update(pin.glob for pin in matching)
        last_matches.append(matching[-1] if matching else None)
    unused = [pin.glob for pin in pins if pin.glob not in used]
    if unused:
        known = ", ".join(dict.fromkeys(call.path or call.function for call in model.calls))
        raise UsageError(f"pin {unused[0]!r} matches no layer; there are: {known:.300}")
    return tuple(last_matches)


def pinned_decisions(
    model: Model, pins: tuple[Pin | None, ...], rest: Strategy, memory: MemoryAction
) -> tuple[Decision, ...]:
    """Decisions for all calls: `rest` and `memory` where nothing is pinned.

    Batch-only calls take the decision of the first other call.
    """
    batch_only = model.batch_only_calls()
    chosen = [(pin.strategy if pin else rest, (pin and pin.memory) or memory) for pin in pins]
    first = next((c for i, c in enumerate(chosen) if i not in batch_only), (rest, memory))
    merged: list[Decision] = []
    for i, choice in enumerate(chosen):
        choice = first if i in batch_only else choice
        if merged and (merged[-1].strategy, merged[-1].memory) == choice:
            merged[-1] = Decision(merged[-1].first, i + 1, *choice)
        else:
            merged.append(Decision(i, i + 1, *choice))
    return tuple(merged)
