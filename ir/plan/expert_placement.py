"""Which ranks have which experts (FlexMoE, SIGMOD 2023): every expert has a home, and may have replicas.

    rank 0   │ home 0 │ home 1 │ replica of 5 │      a home's rank has its states and steps it,
    rank 1   │ home 2 │ home 5 │ replica of 1 │      a replica takes a share of the expert's rows
    rank 2   │ home 3 │ home 4 │ (empty)      │

Between steps `balanced` expands (a replica more), shrinks (a replica less) and migrates (another home).
With one slot a rank beside the homes all ranks can have the mean load, whatever the loads are: see
`level`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import msgspec

EMPTY = -1  # a slot that has no replica
BALANCE_RATIO = 1.2  # rows of the fullest rank over the mean, beyond which experts are placed anew
SETTLED_RATIO = 1.05  # what replicas are added for, then
Group = tuple[int, ...]


class ExpertPlacement(msgspec.Struct, frozen=True):
    """Experts by rank of an axis. `homes`: as many on every rank, each expert once; `replicas`: what
    lies in a rank's further slots (`EMPTY`: nothing), not what has its home there; `shares`: by rank
    and slot, homes first, the part of an expert's rows that goes there."""

    homes: tuple[Group, ...]
    replicas: tuple[Group, ...]
    shares: tuple[tuple[float, ...], ...]

    @property
    def order(self) -> Group:
        """The experts in the order of their homes."""
        return tuple(chain.from_iterable(self.homes))

    @property
    def slots(self) -> int:
        """Slots of a rank, of homes and replicas."""
        return len(self.shares[0])

    @property
    def has_replicas(self) -> bool:
        return any(expert != EMPTY for row in self.replicas for expert in row)

    def experts_of(self, rank: int) -> Group:
        """The experts in the slots of a rank."""
        return self.homes[rank] + self.replicas[rank]

    def rows(self, loads: Sequence[float]) -> list[float]:
        """Rows of each rank where experts get `loads`."""
        return [
            sum(loads[e] * share for e, share in zip(self.experts_of(r), row, strict=True) if share)
            for r, row in enumerate(self.shares)
        ]

    def ratio(self, loads: Sequence[float]) -> float:
        """Rows of the fullest rank over the mean; 1 without rows."""
        rows = self.rows(loads)
        return max(rows) * len(rows) / sum(rows) if sum(rows) > 0 else 1.0


class SlotShares(NamedTuple):
    """Where an expert's rows go: numbers of slots, counted over all ranks, and where the share of each
    ends, of 1."""

    slots: tuple[int, ...]
    ends: tuple[float, ...]


def slot_shares(placement: ExpertPlacement) -> list[SlotShares]:
    """By expert, the slots that take some of its rows."""
    slots: list[list[int]] = [[] for _ in placement.order]
    ends: list[list[float]] = [[] for _ in placement.order]
    for rank, shares in enumerate(placement.shares):
        for at, (expert, share) in enumerate(zip(placement.experts_of(rank), shares, strict=True)):
            if expert != EMPTY and share > 0:
                before = ends[expert][-1] if ends[expert] else 0.0
                slots[expert].append(rank * placement.slots + at)
                ends[expert].append(before + share)
    return [SlotShares(tuple(s), (*e[:-1], 1.0)) for s, e in zip(slots, ends, strict=True)]


def at_home(experts: int, ranks: int, spare_slots: int) -> ExpertPlacement:
    """All experts in their order, no replicas."""
    count = experts // ranks
    homes = tuple(tuple(range(r * count, (r + 1) * count)) for r in range(ranks))
    return _without_replicas(homes, spare_slots)


def _without_replicas(homes: tuple[Group, ...], spare_slots: int) -> ExpertPlacement:
    replicas = ((EMPTY,) * spare_slots,) * len(homes)
    shares = tuple((1.0,) * len(row) + (0.0,) * spare_slots for row in homes)
    return ExpertPlacement(homes, replicas, shares)


def balanced(
    placement: ExpertPlacement, loads: Sequence[float], ratio: float = BALANCE_RATIO
) -> ExpertPlacement:
    """A placement under which no rank gets more than `ratio` times the mean of these loads: itself where
    it is one, else with other replicas, else with other homes as well. A slot a rank is enough."""
    if placement.ratio(loads) <= ratio:
        return placement
    spare = placement.slots - len(placement.homes[0])
    near = with_replicas(placement.homes, spare, loads)
    return near if near.ratio(loads) <= ratio else level(placement, loads)


def with_replicas(
    homes: tuple[Group, ...], spare_slots: int, loads: Sequence[float]
) -> ExpertPlacement:
    """Experts at these homes, and replicas on the ranks with least rows of what the fullest ranks have
    most of, until all are near the mean or have no slot left (Vose's alias method, for ranks)."""
    rows = [{expert: float(loads[expert]) for expert in row} for row in homes]
    free, mean = [spare_slots] * len(homes), sum(loads) / len(homes)
    while mean > 0:
        totals = [sum(row.values()) for row in rows]
        full = max(range(len(homes)), key=totals.__getitem__)
        if totals[full] <= mean * (1 + 1e-9):
            break
        takers = [r for r in range(len(homes)) if free[r] and totals[r] < mean * (1 - 1e-9)]
        taker = min(takers, key=totals.__getitem__, default=full)
        movable = {e: n for e, n in rows[full].items() if e not in rows[taker]}
        if max(totals) <= SETTLED_RATIO * mean or not movable:
            break
        expert = max(movable, key=movable.__getitem__)
        amount = min(mean - totals[taker], movable[expert])
        rows[full][expert] -= amount
        rows[taker][expert] = amount
        free[taker] -= 1
    return _placement(homes, spare_slots, rows, loads)


def _placement(
    homes: tuple[Group, ...],
    spare_slots: int,
    rows: Sequence[dict[int, float]],
    loads: Sequence[float],
) -> ExpertPlacement:
    replicas, shares = list[Group](), list[tuple[float, ...]]()
    for home, row in zip(homes, rows, strict=True):
        others = tuple(e for e, n in row.items() if e not in home and n > 0)
        replicas.append(others + (EMPTY,) * (spare_slots - len(others)))
        part = [row[e] / loads[e] if loads[e] else 1.0 for e in home]
        part += [row[e] / loads[e] for e in others]
        shares.append((*part, *(0.0 for _ in replicas[-1][len(others) :])))
    return ExpertPlacement(homes, tuple(replicas), tuple(shares))


def level(placement: ExpertPlacement, loads: Sequence[float]) -> ExpertPlacement:
    """A placement under which all ranks have the mean load, by one replica on each, with most homes
    where they are.

    Of the experts that are left, by load, there are always as many in a row as a rank is home to that
    have at most the mean together, while another one has what is missing: where the next ones in the
    row have more than the mean, it is the last of them. What is left of that one stays for a later rank.
    """
    rest, ranks = {e: float(n) for e, n in enumerate(loads)}, len(placement.homes)
    count, mean, rows = len(loads) // ranks, sum(loads) / ranks, list[dict[int, float]]()
    for _ in range(ranks):
        ordered, row = sorted(rest, key=lambda e: (rest[e], e)), dict[int, float]()
        donor, missing = None, 0.0
        for first in range(len(ordered) - count + 1):
            row = {e: rest[e] for e in ordered[first : first + count]}
            donor = max(rest.keys() - row.keys(), key=lambda e: (rest[e], e), default=None)
            missing = max(mean - sum(row.values()), 0.0)
            if donor is None or rest[donor] >= missing:
                break
        for expert in row:
            del rest[expert]
        if donor is not None:
            rest[donor] -= missing
            row[donor] = missing
        rows.append(row)
    homes = [tuple(row)[:count] for row in rows]
    numbers = matched(homes, placement.homes)
    return _placement(
        tuple(_in_place(homes[n], old) for n, old in zip(numbers, placement.homes, strict=True)),
        placement.slots - count,
        [rows[n] for n in numbers],
        loads,
    )


def matched(homes: Sequence[Group], before: Sequence[Group]) -> list[int]:
    """By rank, which of these homes has most of the experts that are there already."""
    pairs = sorted(
        (-len(set(new) & set(old)), number, rank)
        for number, new in enumerate(homes)
        for rank, old in enumerate(before)
    )
    number_of: dict[int, int] = {}
    for _, number, rank in pairs:
        if rank not in number_of and number not in number_of.values():
            number_of[rank] = number
    return [number_of[rank] for rank in range(len(before))]


def _in_place(home: Group, before: Group) -> Group:
    """A rank's homes, with those that were there at their places."""
    coming = iter([e for e in home if e not in before])
    return tuple(e if e in home else next(coming) for e in before)
