"""A report as plain data: built from a plan, a model or a placement, drawn by `page`."""

from __future__ import annotations

from typing import Literal

import msgspec

Facts = tuple[tuple[str, str], ...]
Kind = Literal["call", "module", "operator", "communication"]


class Box(msgspec.Struct, frozen=True, omit_defaults=True):
    """One box of a graph, at a column (depth) and a row of it.

    `times` equal calls are drawn as one; times are of one call and one micro-batch, communication
    included (-1 where it is not known apart). `strategy` names what splits it, `note` what happens to
    its activations and messages. `inside` is the key of the graph that opens.
    """

    label: str
    kind: Kind
    column: int = 0
    row: int = 0
    about: str = ""
    times: int = 1
    stage: int = -1
    strategy: str = ""
    note: str = ""
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
    """Boxes and edges of one level; `views` counts operators that only rename memory, not drawn.

    `otherwise` is the key of a graph of the same calls in other boxes, `name` says which ones these are
    ("by stage").
    """

    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    views: int = 0
    name: str = ""
    otherwise: str = ""


class Bar(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stacked bar: named parts in bytes or seconds; `stages` that it stands for.

    `limit_bytes`: its budget, where it is not that of the report.
    """

    label: str
    parts: tuple[tuple[str, float], ...]
    stages: tuple[int, ...] = ()
    limit_bytes: int = 0


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Something on a timeline row: `kind` is "F", "B", "S" (gradient sync and optimizer), "T" (a
    transfer) or "O" (an operator)."""

    row: int
    kind: str
    label: str
    start_seconds: float
    end_seconds: float


class SlotKind(msgspec.Struct, frozen=True, array_like=True):
    """Slots of one length on a row: `F` or `B` of a model chunk, with its parts (name, seconds)."""

    kind: str
    chunk: int
    seconds: float
    parts: tuple[tuple[str, float], ...] = ()


class SlotRow(msgspec.Struct, frozen=True, array_like=True):
    """A stage's slots in the order they run, one letter each: `a` is the first of `kinds`. A number
    before a letter is the wait before it, in ticks. The micro-batches of a letter count up from 0."""

    kinds: tuple[SlotKind, ...]
    slots: str


class TimelineChart(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rows of events, and slots of pipelines (`slots[i]` belongs to row i).

    `steady_bytes` and `each_bytes` per stage: what a device always allocates, and what every micro-batch
    adds between its forward and its backward; or `curves`, (seconds, bytes) at every change.
    """

    rows: tuple[str, ...]
    events: tuple[Event, ...] = ()
    slots: tuple[SlotRow, ...] = ()
    tick_seconds: float = 0.0
    steady_bytes: tuple[int, ...] = ()
    each_bytes: tuple[int, ...] = ()
    curves: tuple[tuple[tuple[float, float], ...], ...] = ()
    hint: str = ""


class ReportTable(msgspec.Struct, frozen=True):
    """A table of texts; `right` lists the columns that hold figures."""

    title: str
    hint: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: tuple[int, ...] = ()


Pair = tuple[str, float, float]  # a term: its name, its amount here, its amount there


class Rival(msgspec.Struct, frozen=True, omit_defaults=True):
    """Another plan beside this one: what it takes, and where the difference lies, term by term.

    `near_duplicates` says which others were folded into it.
    """

    name: str
    strategy: str
    micro_batches: int
    memory_actions: str
    step_seconds: float
    peak_bytes: int
    fits: bool
    seconds: tuple[Pair, ...] = ()
    memory: tuple[Pair, ...] = ()
    near_duplicates: str = ""
    reason: str = ""


class Point(msgspec.Struct, frozen=True, array_like=True):
    """A plan as time against memory; the first of a report is the plan itself."""

    label: str
    step_seconds: float
    peak_bytes: int
    fits: bool


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """A page. `graphs[""]` is the model, the others open from its boxes; empty parts are not drawn.

    `verdict` answers whether it fits and how sure that is, `reasons` why this plan. `modes`: what the
    graph can be coloured by: stage, device, strategy, time, work. `part` says what its stages are: those
    of a pipeline, or devices; `stage_names` are theirs, where they are of several kinds.
    """

    title: str
    subtitle: str
    tiles: tuple[tuple[str, str, str], ...]
    graphs: dict[str, BoxGraph]
    modes: tuple[str, ...]
    verdict: str = ""
    fits: bool = True
    headroom: Bar | None = None
    reasons: tuple[str, ...] = ()
    rivals: tuple[Rival, ...] = ()
    points: tuple[Point, ...] = ()
    stages: int = 0
    stage_names: tuple[str, ...] = ()
    memory_limit_bytes: int = 0
    memory: tuple[Bar, ...] = ()
    step: tuple[Bar, ...] = ()
    timeline: TimelineChart | None = None
    tables: tuple[ReportTable, ...] = ()
    part: str = "stage"


class PlanComparison(msgspec.Struct, frozen=True, omit_defaults=True):
    """Two reports beside each other, and what the second costs more; or the points of several."""

    title: str
    verdict: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    seconds: tuple[Pair, ...] = ()
    memory: tuple[Pair, ...] = ()
    differences: tuple[tuple[str, ...], ...] = ()
    points: tuple[Point, ...] = ()
    memory_limit_bytes: int = 0


class Pages(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a page shows: one report, or several with their comparison."""

    reports: tuple[Report, ...]
    comparison: PlanComparison | None = None
