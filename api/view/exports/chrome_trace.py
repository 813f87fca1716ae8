"""A report's timeline as a Chrome trace: opens in chrome://tracing, Perfetto and what else reads it."""

from __future__ import annotations

import json

from ....ir.errors import UsageError
from ..report import Report
from .slots import all_events

NAMES = {"F": "forward", "B": "backward", "S": "synchronisation", "T": "transfer", "O": "operator"}


def chrome_trace(report: Report) -> str:
    """One thread a row, complete events in microseconds; bytes held as counters where known.

    Raises UsageError for a report without a timeline.
    """
    timeline = report.timeline
    if timeline is None:
        raise UsageError(
            f"{report.title} has no timeline: a model has none, nor have very long steps"
        )
    events: list[dict[str, object]] = [
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": report.title}}
    ]
    for row, name in enumerate(timeline.rows):
        events.append(
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": row, "args": {"name": name}}
        )
    for event in all_events(timeline):
        events.append(
            {
                "ph": "X",
                "name": event.label,
                "cat": NAMES.get(event.kind, event.kind),
                "pid": 0,
                "tid": event.row,
                "ts": event.start_seconds * 1e6,
                "dur": (event.end_seconds - event.start_seconds) * 1e6,
            }
        )
    for row, curve in enumerate(timeline.curves):
        for at, amount in curve:
            events.append(
                {
                    "ph": "C",
                    "name": f"bytes held, {timeline.rows[row]}",
                    "pid": 0,
                    "ts": at * 1e6,
                    "args": {"bytes": amount},
                }
            )
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, separators=(",", ":"))
