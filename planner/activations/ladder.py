"""Candidates under memory actions beyond keep and recompute, where those could win.

If a candidate fits while keeping everything, no memory action makes it faster; if it is not faster
than the best candidate that fits, no action helps either. So actions are tried on the fast
candidates that exceed memory, on the smallest of those that split the devices like one of them, whose
layers it can mix with theirs, and, while nothing fits, on those that exceed it least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf

from msgspec.structs import replace

from ...ir.plan.memory_action import BASIC_ACTIONS, INPUTS, KEEP, OFFLOAD, MemoryAction
from ..question.candidate import Candidate, ReplicaPoint, RunPoint
from ..question.deadline import Deadline
from ..question.ranking import fitting

TRIED = 24  # candidates tried, fastest first; while nothing fits, as many of the smallest
PERCENTS = (75, 50, 25)  # of the saveable bytes, in actions between keep and recompute
PARTIAL_ACTIONS = tuple(MemoryAction(percent) for percent in PERCENTS)
OFFLOADED_ACTIONS = (
    OFFLOAD,
    *(MemoryAction(percent, on_host=True) for percent in PERCENTS),
    MemoryAction(INPUTS, on_host=True),
)
CHUNKED_ACTIONS = tuple(MemoryAction(INPUTS, chunks=count) for count in (2, 4, 8, 16, 32, 64))
ALL_ACTIONS = (*BASIC_ACTIONS, *PARTIAL_ACTIONS, *OFFLOADED_ACTIONS, *CHUNKED_ACTIONS)
Price = Callable[[RunPoint], Candidate | None]


def memory_saving_candidates(
    candidates: Sequence[Candidate],
    memory_limit: int,
    price: Price,
    allowed: Sequence[str],
    deadline: Deadline,
    can: Callable[[MemoryAction], bool] = lambda action: True,
) -> list[Candidate]:
    """Candidates under all other `allowed` actions, given those under the base actions.

    `memory_limit`: bytes per device; `can`: whether the engine has an action."""
    best = next((c.step_seconds for c in fitting(candidates, memory_limit)), inf)
    base_action = base_actions(allowed)[0]
    tight = [
        c
        for c in candidates
        if c.step_seconds < best
        and len(c.decisions) == 1
        and c.decisions[0].memory == base_action
        and c.peak_bytes > memory_limit
    ]
    tight.sort(key=lambda c: (c.step_seconds, c.peak_bytes, c.strategy_text, c.micro_batches))
    tried, others = tight[:TRIED], tight[TRIED:]
    others.sort(key=lambda c: (c.peak_bytes, c.strategy_text, c.micro_batches))
    tried += others[:TRIED] if best == inf else smallest_by_split(tried, others)
    return [
        priced
        for ladder in action_ladders(allowed)
        for actions in [tuple(filter(can, ladder))]
        for c in tried
        for priced in climb(c, actions, memory_limit, price, deadline)
    ]


def smallest_by_split(tried: Sequence[Candidate], others: Sequence[Candidate]) -> list[Candidate]:
    """The first of `others`, the smallest before the others, that split the devices as one of `tried`
    does and need less than all of these."""
    least: dict[ReplicaPoint, int] = {}
    for candidate in tried:
        split, peak_bytes = candidate.assignment.first_point.replica, candidate.peak_bytes
        least[split] = min(least.get(split, peak_bytes), peak_bytes)
    smallest: dict[ReplicaPoint, Candidate] = {}
    for candidate in others:
        split = candidate.assignment.first_point.replica
        if candidate.peak_bytes < least.get(split, 0):
            smallest.setdefault(split, candidate)
    return list(smallest.values())


def base_actions(allowed: Sequence[str]) -> tuple[MemoryAction, ...]:
    """Actions under which every candidate is priced: keep and recompute as far as allowed, or the
    single action that the user names."""
    named = sorted(map(MemoryAction.parse, set(allowed) - {"offload", "split"}))
    return tuple(named) or ((OFFLOAD,) if "offload" in allowed else (KEEP,))


def action_ladders(allowed: Sequence[str]) -> list[tuple[MemoryAction, ...]]:
    """Sequences of actions, each of which needs less memory than the one before."""
    ladders: list[tuple[MemoryAction, ...]] = []
    fractions = set(map(str, BASIC_ACTIONS)) <= set(allowed)
    if fractions:
        ladders.append(PARTIAL_ACTIONS)
    if "offload" in allowed:
        ladders.append(tuple(m for m in OFFLOADED_ACTIONS if fractions or not m.partial))
    if "split" in allowed:
        ladders.append(CHUNKED_ACTIONS)
    return ladders


def climb(
    candidate: Candidate,
    actions: Sequence[MemoryAction],
    memory_limit: int,
    price: Price,
    deadline: Deadline,
) -> Iterator[Candidate]:
    """Price a candidate under one action after the other until it fits or memory stops falling."""
    least = inf
    for memory in actions:
        if deadline.passed():
            return
        priced = price(replace(candidate.assignment.first_point, memory=memory))
        if priced is None:
            continue
        yield priced
        if priced.peak_bytes <= memory_limit or priced.peak_bytes >= least:
            return
        least = priced.peak_bytes
