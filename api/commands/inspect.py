"""`plait inspect`: who waited for whom when a run failed, from what its ranks left."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_json
from .output import print_json

if TYPE_CHECKING:
    from ...runtime.comm.flight_log import FlightLog

LAST = 3  # collectives of a rank that are shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", metavar="DIR", help="the folder of dumps that a failed run names"
    )
    parser.add_argument(
        "--last", type=int, default=LAST, metavar="N", help="collectives shown of every rank"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ...runtime.comm.flight_log import read_log

    log = read_log(Path(arguments.directory))
    if arguments.json:
        print_json(_json(log))
    else:
        print("\n".join(_lines(log, max(arguments.last, 0))))
    return 0


def _json(log: FlightLog) -> dict[str, Any]:
    return {
        "verdict": log.verdict,
        "missing": list(log.diagnosis.missing),
        "waits": [
            {"rank": w.rank, "collective": w.record.what, "awaits": list(w.awaited)}
            for w in log.waits
        ],
        "stragglers": log.stragglers,
        "steps": {str(rank): state.step for rank, state in sorted(log.states.items())},
    }


def _lines(log: FlightLog, last: int) -> list[str]:
    """The verdict, then what every rank waited for and did last, then the slow ranks."""
    lines = [log.verdict]
    for wait in log.waits:
        awaited = ", ".join(map(str, wait.awaited)) or "nobody: its connection failed"
        lines.append(f"rank {wait.rank} waits in {wait.record} for {awaited}")
    for rank, state in sorted(log.states.items()):
        records = log.records.get(rank)
        note = "" if records is not None else ", left no dump"
        lines.append(
            f"rank {rank}: step {state.step}, {sum(state.counts.values())} collectives{note}"
        )
        lines += [
            f"  {record} {_seconds(record.end - record.start) if record.end else 'not done'}"
            for record in (records or ())[len(records or ()) - last :]
        ]
    return lines + log.stragglers


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
