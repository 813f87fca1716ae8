"""The dumps of all ranks of a failed run, put together."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from ...ir.errors import FileError
from .diagnosis import Diagnosis, Wait, diagnose, stragglers, waits
from .flight_recorder import RankState, Record
from .monitor import Dump

MOST_BYTES = 64 << 20  # of one dump


class FlightLog(NamedTuple):
    """What ranks said of themselves, and their last collectives, by rank; what follows from it."""

    verdict: str
    states: dict[int, RankState]
    records: dict[int, tuple[Record, ...]]
    diagnosis: Diagnosis
    waits: list[Wait]
    stragglers: list[str]


def read_log(folder: Path) -> FlightLog:
    """Read `rank_*.json` of a folder; raises FileError naming what is missing or damaged."""
    dumps = [_read(path) for path in sorted(folder.glob("rank_*.json"))]
    if not dumps:
        raise FileError(f"{folder}: no dumps of ranks (rank_00000.json and so on) in this folder")
    states: dict[int, RankState] = {}
    for state in (state for dump in dumps for state in dump.others):
        if state.rank not in states or states[state.rank].beat < state.beat:
            states[state.rank] = state
    silent = set(states) - {dump.state.rank for dump in dumps}
    states |= {dump.state.rank: dump.state for dump in dumps}
    now = max(dump.state.time for dump in dumps)
    return FlightLog(
        dumps[0].verdict,
        states,
        {dump.state.rank: dump.records for dump in dumps},
        diagnose(states, silent, now),
        [wait for wait in waits(states, silent) if wait.rank not in silent],
        stragglers(list(states.values())),
    )


def _read(path: Path) -> Dump:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise FileError(f"{path}: larger than a dump can be")
        return msgspec.json.decode(path.read_bytes(), type=Dump)
    except (OSError, msgspec.DecodeError) as error:
        raise FileError(f"{path}: not the dump of a rank: {error}") from error
