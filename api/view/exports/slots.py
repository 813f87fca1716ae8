"""Slots of a timeline as events again, for forms that do not decode them themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ..report import Event, SlotKind, TimelineChart

SLOT = re.compile(r"(\d*)([a-z])")


class Slot(NamedTuple):
    """A forward or backward of a row, with what it is made of."""

    row: int
    kind: SlotKind
    micro_batch: int
    start_seconds: float
    end_seconds: float


def slots_of(chart: TimelineChart) -> Iterator[Slot]:
    """All slots, row by row, in their order."""
    for row, coded in enumerate(chart.slots):
        clock, counts = 0.0, [0] * len(coded.kinds)
        for wait, letter in SLOT.findall(coded.slots):
            number = ord(letter) - ord("a")
            kind = coded.kinds[number]
            clock += int(wait or 0) * chart.tick_seconds
            yield Slot(row, kind, counts[number], clock, clock + kind.seconds)
            counts[number] += 1
            clock += kind.seconds


def all_events(chart: TimelineChart) -> Iterator[Event]:
    """Slots and events alike; `F3.1` is the forward of micro-batch 3 in chunk 1."""
    for slot in slots_of(chart):
        chunks = any(kind.chunk for kind in chart.slots[slot.row].kinds)
        label = f"{slot.kind.kind}{slot.micro_batch}" + (f".{slot.kind.chunk}" if chunks else "")
        yield Event(slot.row, slot.kind.kind, label, slot.start_seconds, slot.end_seconds)
    yield from chart.events
