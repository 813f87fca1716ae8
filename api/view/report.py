"""A report as plain data: built from a plan, a model or a placement, drawn by `page`."""

from __future__ import annotations

from typing import Literal

import msgspec

Facts = tuple[tuple[str, str], ...]
Kind = Literal["call", "module", "operator", "communication"]


class Box(msgspec.Struct, frozen=True, omit_defaults=True):
    """One box of a graph, at a column (depth) and a row of it.

    `times` equal calls are drawn as one; times are of one call and one micro-batch, communication
    included (-1 where it is not known apart). `strategy` names what splits it. `inside` is the key
    of the graph that opens.
    """

    label: str
    kind: Kind
    column: int = 0
    row: int = 0
    about: str = ""
    times: int = 1
    stage: int = -1
    strategy: str = ""
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    communication_seconds: float = 0.0
    flops: float = 0.0
    facts: Facts = ()
    inside: str = ""


class Edge(msgspec.Struct, frozen=True, array_like=True):
    """Data from one box to another, by position; `transfer` is the amount sent from stage to stage."""

    source: int
    target: int
    transfer: str = ""


class BoxGraph(msgspec.Struct, frozen=True, omit_defaults=True):
    """Boxes and edges of one level; `views` counts operators that only rename memory, not drawn."""

    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    views: int = 0


class Bar(msgspec.Struct, frozen=True):
    """A stacked bar: named parts in bytes or seconds."""

    label: str
    parts: tuple[tuple[str, float], ...]


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Something on a timeline row: `kind` is "F", "B", "S" (gradient sync and optimizer) or "T"
    (a transfer)."""

    row: int
    kind: str
    label: str
    start_seconds: float
    end_seconds: float


class TimelineChart(msgspec.Struct, frozen=True):
    """Rows of events. `steady_bytes` and `each_bytes` per stage: what a device always allocates,
    and what every micro-batch adds between its forward and its backward; or `curves`, (seconds, bytes)
    at every change."""

    rows: tuple[str, ...]
    events: tuple[Event, ...]
    steady_bytes: tuple[int, ...] = ()
    each_bytes: tuple[int, ...] = ()
    curves: tuple[tuple[tuple[float, float], ...], ...] = ()


class ReportTable(msgspec.Struct, frozen=True):
    """A table of texts; `right` lists the columns that hold figures."""

    title: str
    hint: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """A page. `graphs[""]` is the model, the others open from its boxes; empty parts are not drawn.

    `modes`: what the graph can be coloured by: stage, device, strategy, time, work. `part` says what
    its stages are: those of a pipeline, or devices.
    """

    title: str
    subtitle: str
    tiles: tuple[tuple[str, str, str], ...]
    graphs: dict[str, BoxGraph]
    modes: tuple[str, ...]
    stages: int = 0
    memory_limit_bytes: int = 0
    memory: tuple[Bar, ...] = ()
    step: tuple[Bar, ...] = ()
    timeline: TimelineChart | None = None
    tables: tuple[ReportTable, ...] = ()
    part: str = "stage"
