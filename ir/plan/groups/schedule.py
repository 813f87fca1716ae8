"""Schedules of device groups: 1F1B where every group runs its own micro-batches.

A group has warmed up when it has done the forwards of as many micro-batches ahead as there are groups
beside and after it among those that it is joined with. Counted so, no group waits for ever: all take
micro-batches in one order, and an earlier group is further ahead than a later one.

    group 0, micro-batches 0 2   F0 F2 B0 B2
    group 1, micro-batches 1     F1 B1
    group 2 after both           F0 B0 F1 B1 F2 B2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..plan import Plan, Span
from ..schedules.chunk_map import ScheduleRows, ScheduleStep


class Tile(NamedTuple):
    """What a device group runs: calls [first, last), and micro-batches in order."""

    calls: Span
    micro_batches: tuple[int, ...]


def tiles_of(plan: Plan) -> tuple[Tile, ...]:
    """The tiles of a plan's groups."""
    return tuple(
        Tile(stage.model_chunks[0], group.micro_batches)
        for stage, group in zip(plan.stages, plan.groups, strict=True)
    )


class Neighbours(NamedTuple):
    """By micro-batch of a group, the group that runs the calls before its own, and that after."""

    before: dict[int, int]
    after: dict[int, int]


def neighbours(tiles: Sequence[Tile]) -> tuple[Neighbours, ...]:
    """The neighbours of every group."""
    starts = {(t.calls[0], m): n for n, t in enumerate(tiles) for m in t.micro_batches}
    ends = {(t.calls[1], m): n for n, t in enumerate(tiles) for m in t.micro_batches}
    return tuple(
        Neighbours(
            {m: ends[t.calls[0], m] for m in t.micro_batches if (t.calls[0], m) in ends},
            {m: starts[t.calls[1], m] for m in t.micro_batches if (t.calls[1], m) in starts},
        )
        for t in tiles
    )


def group_rows(tiles: Sequence[Tile]) -> ScheduleRows:
    """The schedule: a row of forwards and backwards for every group."""
    near = neighbours(tiles)
    depth = _depths(near)
    rows: list[tuple[ScheduleStep, ...]] = [()] * len(near)
    for members in _joined(near):
        numbers = sorted({m for g in members for m in tiles[g].micro_batches})
        position = {m: at for at, m in enumerate(numbers)}
        for g in members:
            ahead = sum(depth[other] <= depth[g] for other in members)
            rows[g] = _row(tiles[g].micro_batches, position, ahead)
    return tuple(rows)


def _row(
    micro_batches: Sequence[int], position: dict[int, int], ahead: int
) -> tuple[ScheduleStep, ...]:
    """Forwards up to `ahead` positions before each backward."""
    steps: list[ScheduleStep] = []
    forwards = list(micro_batches)
    for number in micro_batches:
        while forwards and position[forwards[0]] < position[number] + ahead:
            steps.append(("F", 0, forwards.pop(0)))
        steps.append(("B", 0, number))
    return tuple(steps)


def _depths(near: Sequence[Neighbours]) -> list[int]:
    """Groups on the longest way from each group to the end of the model."""
    depth = [0] * len(near)
    for _ in near:
        for g, here in enumerate(near):
            depth[g] = max((1 + depth[n] for n in here.after.values()), default=0)
    return depth


def _joined(near: Sequence[Neighbours]) -> list[list[int]]:
    """Groups that micro-batches join, directly or through others."""
    first_of = list(range(len(near)))
    for _ in near:
        for g, here in enumerate(near):
            least = min(
                [first_of[g], *(first_of[n] for n in (*here.before.values(), *here.after.values()))]
            )
            first_of[g] = least
    return [[g for g in range(len(near)) if first_of[g] == one] for one in sorted(set(first_of))]


def group_in_flight(row: Sequence[ScheduleStep]) -> int:
    """Peak number of micro-batches that wait for backward."""
    count = peak = 0
    for kind, _, _ in row:
        count += 1 if kind == "F" else -1
        peak = max(peak, count)
    return peak
