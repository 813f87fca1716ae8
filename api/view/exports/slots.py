"""Slots of a timeline as events again, for forms that do not decode them themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec.structs import replace

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
    slots = list(slots_of(chart))
    for slot in slots:
        chunks = any(kind.chunk for kind in chart.slots[slot.row].kinds)
        label = f"{slot.kind.kind}{slot.micro_batch}" + (f".{slot.kind.chunk}" if chunks else "")
        yield Event(slot.row, slot.kind.kind, label, slot.start_seconds, slot.end_seconds)
    yield from events_in_turn(chart, slots)


def events_in_turn(chart: TimelineChart, slots: Iterable[Slot]) -> Iterator[Event]:
    """Events that are no slots, each no earlier than the end of what its row did before: times of a
    chart are rounded, and readers drop slices that cross."""
    ends: dict[int, float] = {}
    for slot in slots:
        ends[slot.row] = max(ends.get(slot.row, 0.0), slot.end_seconds)
    for event in sorted(chart.events, key=lambda e: (e.row, e.start_seconds)):
        start = max(event.start_seconds, ends.get(event.row, 0.0))
        end = max(event.end_seconds, start)
        ends[event.row] = end
        yield replace(event, start_seconds=start, end_seconds=end)
