"""Who waited for whom, from what ranks said of themselves: the ranks that are missing, and where."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from .flight_recorder import RankState, Record

SHOWN = 4  # ranks that a message names
STRAGGLER = 1.25  # times the median


class Wait(NamedTuple):
    """A rank in a collective, and the ranks that it waits for there."""

    rank: int
    record: Record
    awaited: tuple[int, ...]


class Diagnosis(NamedTuple):
    """`missing` are ranks that others wait for and that wait for nobody; empty where ranks wait for
    each other in a circle. `hopeless`: no waiting helps, since they do not come."""

    missing: tuple[int, ...]
    text: str
    hopeless: bool = False


def waits(states: Mapping[int, RankState], silent: Collection[int] = ()) -> Iterator[Wait]:
    """What every rank waits for; `silent` ranks give no sign of life, whatever they were in."""
    for rank, state in sorted(states.items()):
        for record in state.running:
            others = [other for other in record.ranks if other != rank]
            behind = [other for other in others if _behind(states.get(other), record)]
            gone = [other for other in others if other in silent or other not in states]
            yield Wait(rank, record, tuple(dict.fromkeys((*gone, *behind))))


def _behind(state: RankState | None, record: Record) -> bool:
    return state is None or state.counts.get(record.channel, 0) < record.sequence


def diagnose(states: Mapping[int, RankState], silent: Collection[int], now: float) -> Diagnosis:
    """The missing ranks and a sentence about them; `now` in seconds of the epoch."""
    waiting = list(waits(states, silent))
    waiters = {wait.rank for wait in waiting if wait.rank not in silent}
    awaited = {rank for wait in waiting if wait.rank in waiters for rank in wait.awaited}
    missing = tuple(sorted(awaited - {w.rank for w in waiting if w.awaited} | awaited & {*silent}))
    if not missing:
        missing = tuple(sorted(r for r in states if r in silent or states[r].end))
    if missing:
        where = [_where(rank, states.get(rank), rank in silent, now) for rank in missing[:SHOWN]]
        more = f", and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        gone = any(r in silent or r not in states or states[r].end for r in missing)
        return Diagnosis(missing, "; ".join(where) + more, gone)
    circle = [wait for wait in waiting if wait.awaited]
    if not circle:
        return Diagnosis((), "every rank is there: the connection between them failed")
    rows = [f"rank {w.rank} is in {w.record}" for w in circle[:SHOWN]]
    return Diagnosis((), f"ranks wait for each other: {', '.join(rows)}", True)


def _where(rank: int, state: RankState | None, silent: bool, now: float) -> str:
    if state is None:
        return f"rank {rank} is missing: it never came to its first collective"
    place = f"it was at step {state.step}, {_doing(state, now)}"
    if state.end:
        return f"rank {rank} is missing: it has ended ({state.end}); {place}"
    if silent:
        age = max(now - state.time, 0.0)
        return f"rank {rank} is missing: no sign of life for {age:.0f} s; {place}"
    return f"rank {rank} is missing: {place}; it is alive: if it works that long, raise working_seconds"


def _doing(state: RankState, now: float) -> str:
    if state.running:
        return f"in {state.running[0]}"
    if state.last is None:
        return "before its first collective"
    if not state.last.end:
        return f"outside collectives, beside {state.last}"
    return f"outside collectives for {max(now - state.last.end, 0.0):.0f} s, after {state.last}"


def stragglers(states: Sequence[RankState]) -> list[str]:
    """A line per rank whose own work in a step takes clearly longer than the median rank's."""
    busy = [state.busy_seconds for state in states if state.busy_seconds > 0]
    usual = median(busy) if busy else 0.0
    return [
        f"rank {state.rank} works {state.busy_seconds:.4g} s of a step of {state.step_seconds:.4g} s, "
        f"{state.busy_seconds / usual:.2f} times the median of {usual:.4g} s"
        for state in sorted(states, key=lambda s: -s.busy_seconds)
        if usual and state.busy_seconds > STRAGGLER * usual
    ]
