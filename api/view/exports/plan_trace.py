"""A plan's step as a Chrome trace that is worth opening in Perfetto: a row a rank.

stage 1   rank 8   [F0: compute | all_reduce over tp | ...] [F1] [B0] ...   with bytes and groups
          └ memory, a counter                arrows: what one stage sends to the next
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ....cost_model.communication.stage_transfer import plan_transfers
from ....cost_model.pipeline.closed_form import chunk_shares
from ....ir.errors import UsageError
from ....ir.plan.plan import Plan
from ..plans.from_schedule import timeline_of
from ..report import TimelineChart
from .messages import SYNC, TracedMessages, messages_of
from .slots import Slot, events_in_turn, slots_of

NAMES = {"F": "forward", "B": "backward", "I": "backward of inputs", "W": "backward of weights"}
MOST_EVENTS = 150_000
MICRO = 1e6  # a trace counts microseconds
TraceEvent = dict[str, Any]


def plan_trace(plan: Plan) -> str:
    """As many ranks of every stage as `MOST_EVENTS` allow, at least its first.

    Raises UsageError for a step of too many slots.
    """
    chart = timeline_of(plan)
    if chart is None:
        raise UsageError("the step has too many micro-batches to be drawn slot by slot")
    events = list(_PlanTrace(plan, chart).events())
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, separators=(",", ":"))


class _PlanTrace:
    def __init__(self, plan: Plan, chart: TimelineChart) -> None:
        self.plan, self.chart = plan, chart
        self.slots = list(slots_of(chart))
        self.ranks_per_stage = min(len(plan.ranks_of(s)) for s in range(len(plan.stages)))
        events = sum(3 + len(slot.kind.parts) for slot in self.slots)  # two are a flow
        self.shown = max(1, min(self.ranks_per_stage, MOST_EVENTS // max(1, events)))
        self.sent = {s: messages_of(plan, s) for s in range(len(plan.stages))}
        self.flow = 0

    def events(self) -> Iterator[TraceEvent]:
        for stage in range(len(self.plan.stages)):
            yield from self.names(stage)
        for slot in self.slots:
            for rank in self.ranks(slot.row):
                yield from self.slices(slot, rank)
        for event in events_in_turn(self.chart, self.slots):
            if event.row < len(self.plan.stages):
                for rank in self.ranks(event.row):
                    start, end = event.start_seconds, event.end_seconds
                    category = NAMES.get(event.kind, "once per step")
                    part = self.slice(event.row, rank, event.label, category, start, end)
                    sent = self.sent[event.row].get((SYNC, event.label.split(" as ")[0]), [])
                    if sent:
                        part |= {
                            "cat": "collective",
                            "args": _about(sent, rank, self.first(event.row)),
                        }
                    yield part
        yield from self.memory()
        yield from self.flows()

    def names(self, stage: int) -> Iterator[TraceEvent]:
        first = self.first(stage)
        shown = f"{self.shown} of {self.ranks_per_stage} ranks shown, all do the same"
        name = f"stage {stage}" + (f" ({shown})" if self.shown < self.ranks_per_stage else "")
        yield {"ph": "M", "name": "process_name", "pid": stage, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": stage, "args": {"sort_index": stage}}
        for rank in range(first, first + self.shown):
            thread = {"name": f"rank {rank}"}
            yield {"ph": "M", "name": "thread_name", "pid": stage, "tid": rank, "args": thread}

    def first(self, stage: int) -> int:
        return self.plan.ranks_of(stage)[0]

    def ranks(self, stage: int) -> range:
        return range(self.first(stage), self.first(stage) + self.shown)

    def slice(
        self, stage: int, rank: int, name: str, category: str, start: float, end: float
    ) -> TraceEvent:
        times = {"ts": start * MICRO, "dur": (end - start) * MICRO}
        return {"ph": "X", "name": name, "cat": category, "pid": stage, "tid": rank, **times}

    def slices(self, slot: Slot, rank: int) -> Iterator[TraceEvent]:
        """A forward or backward, and inside it computing and the collectives of every group."""
        kind, start, end = slot.kind, slot.start_seconds, slot.end_seconds
        chunk = f".{kind.chunk}" if self.plan.chunks_per_stage > 1 else ""
        label = f"{kind.kind}{slot.micro_batch}{chunk}"
        whole = self.slice(slot.row, rank, label, NAMES[kind.kind], start, end)
        whole["args"] = {"micro_batch": slot.micro_batch, "chunk": kind.chunk}
        yield whole
        total = sum(amount for _, amount in kind.parts) or 1.0
        shares = chunk_shares(self.plan, self.plan.stages[slot.row])
        for name, amount in kind.parts:
            stop = min(start + amount / total * kind.seconds, end)
            part = self.slice(slot.row, rank, name, "compute", start, stop)
            half = "F" if kind.kind == "F" else "B"
            sent = self.sent[slot.row].get((half, name.split(" as ")[0]), [])
            if sent or name != "compute":
                about = _about(sent, rank, self.first(slot.row), shares[kind.chunk])
                part |= {"cat": "collective", "args": about}
            yield part
            start = stop

    def memory(self) -> Iterator[TraceEvent]:
        """Bytes of a device of every stage: a forward adds its activations, a backward lets go."""
        steady, each = self.chart.steady_bytes, self.chart.each_bytes
        for stage in range(len(self.plan.stages)):
            waiting = 0
            for kind, start, end in self.halves(stage):
                waiting += 1 if kind == "F" else -1
                at, amount = start if kind == "F" else end, steady[stage] + waiting * each[stage]
                counter = {"ph": "C", "name": "memory", "pid": stage, "ts": at * MICRO}
                yield {**counter, "args": {"bytes": amount}}

    def halves(self, stage: int) -> list[tuple[str, float, float]]:
        """Forwards and (last parts of) backwards of a stage, as kind, start and end."""
        run = [(x.kind.kind, x.start_seconds, x.end_seconds) for x in self.slots if x.row == stage]
        run += [
            (x.kind, x.start_seconds, x.end_seconds) for x in self.chart.events if x.row == stage
        ]
        return [half for half in run if half[0] in "FBW"]

    def flows(self) -> Iterator[TraceEvent]:
        """Arrows from the end of a slot to the start of the one that waits for what it sends."""
        if self.plan.groups:
            return
        at = {(s.kind.kind, s.micro_batch, self.number(s)): s for s in self.slots}
        transfers = plan_transfers(self.plan)
        chunks = len(self.plan.model_chunks)
        for (kind, micro_batch, chunk), slot in at.items():
            other = chunk + {"F": 1, "W": self.plan.chunk_map.total}.get(kind, -1)
            reader = at.get((kind, micro_batch, other)) if 0 <= other < chunks else None
            if reader is None or reader.row == slot.row:
                continue
            sender = min(chunk, other) % len(self.plan.stages)
            args = {"bytes": transfers[sender].sent_bytes if sender < len(transfers) else 0}
            for offset in range(self.shown):
                self.flow += 1
                ends = (("s", slot, slot.end_seconds), ("f", reader, reader.start_seconds))
                for phase, end, seconds in ends:
                    rank = self.first(end.row) + offset
                    event = {"ph": phase, "id": self.flow, "name": "send", "cat": "transfer"}
                    inside = seconds - 1e-9 if phase == "s" else seconds
                    place = {"pid": end.row, "tid": rank, "ts": inside * MICRO}
                    binding = {"bp": "e"} if phase == "f" else {}  # to the slice around it
                    yield {**event, **place, **binding, "args": args}

    def number(self, slot: Slot) -> int:
        """The model chunk of a slot, counted along the model."""
        return self.plan.chunk_map.number(slot.row, slot.kind.chunk)


def _about(
    messages: Sequence[TracedMessages], rank: int, first: int, share: float = 1.0
) -> dict[str, Any]:
    """Bytes that a device sends, a `share` of those of its stage, and the ranks that take part with
    this one; `first` is the first of the stage."""
    if not messages:
        return {}
    size, stride = max((m.size, m.stride) for m in messages)
    lowest = rank - (rank - first) // stride % size * stride
    ranks = [lowest + i * stride for i in range(size)]
    text = f"{ranks}" if size <= 8 else f"{ranks[:4]} … {ranks[-1]}"
    return {
        "bytes": round(share * sum(m.sent_bytes for m in messages)),
        "messages": max(1, round(share * sum(m.messages for m in messages))),
        "group": text,
        "group_size": size,
    }
