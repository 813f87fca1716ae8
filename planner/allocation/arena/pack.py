"""Packing with a certified bound: first fit, then branch and bound, until done or out of time.

Components that share no time are packed separately. Every packing's peak is an upper bound; the
maximum of live bytes, and heights that a search has refuted, are lower bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import numpy as np

from ....ir.plan.allocation import Buffer, Packing, Status
from ...question.deadline import Clock, Deadline, Watch, monotonic, unwatched
from .branch import FOUND, NONE, STOPPED
from .constraint import solve_constrained
from .greedy import greedy, height
from .portfolio import EVERYTHING, GROWTH, Portfolio, Switches
from .sections import Ints, Sections, sections

MOST_PAIRS = 1_000_000  # pairs of neighbours beyond which only first fit is tried
CONSTRAINED = 2  # the round from which CP-SAT takes a turn
CONSTRAINED_SECONDS = 2.0  # of its first turn


def pack(
    buffers: Sequence[Buffer],
    capacity_bytes: int | None = None,
    *,
    time_limit_seconds: float = 60.0,
    minimise: bool = False,
    switches: Switches = EVERYTHING,
    clock: Clock = monotonic,
    watch: Watch = unwatched,
) -> Packing:
    """Offsets (bytes) for buffers such that buffers that are live at once do not overlap.

    Stops when the peak is within `capacity_bytes`; with `minimise`, or without a capacity,
    continues until the peak is proven optimal. Returns the best packing after `time_limit_seconds`
    of wall time; `watch` is told the peak so far and its bound. Combines Moffitt's MiniMalloc (ASPLOS
    2023: canonical packings, section bounds, decomposition in time) with restarts that learn from
    failures.
    """
    goal = None if minimise else capacity_bytes
    nonempty = [i for i, b in enumerate(buffers) if b.size > 0]
    offsets = np.zeros(len(buffers), np.int64)
    state = _Components(sections([buffers[i] for i in nonempty]), goal, switches)
    state.improve(Deadline(time_limit_seconds, clock), watch)
    offsets[nonempty] = state.offsets()
    peak, bound = state.peak(), state.bound
    return Packing(tuple(offsets.tolist()), peak, bound, status_of(peak, bound, capacity_bytes))


def status_of(peak: int, bound: int, capacity: int | None) -> Status:
    """Status of a packing from its peak, the lower bound, and the capacity if there is one."""
    if capacity is not None and bound > capacity:
        return "infeasible"
    if peak == bound:
        return "optimal"
    return "feasible" if capacity is None or peak <= capacity else "unknown"


class _Components:
    """Components of a problem with the best packing of each; `bound` is for their maximum."""

    def __init__(self, all_buffers: Sections, goal: int | None, switches: Switches) -> None:
        self.all_buffers, self.goal = all_buffers, goal
        self.switches = switches
        self.members = all_buffers.components()
        self.components = [_renumber(all_buffers.of(chosen)) for chosen in self.members]
        self.best = [greedy(component) for component in self.components]
        self.bound = all_buffers.bound()
        self.portfolios: dict[int, Portfolio] = {}
        self.unit = gcd(*all_buffers.size.tolist()) if len(all_buffers.size) else 1

    def peaks(self) -> list[int]:
        return [
            height(component, best)
            for component, best in zip(self.components, self.best, strict=True)
        ]

    def peak(self) -> int:
        return max(self.peaks(), default=0)

    def offsets(self) -> Ints:
        offsets_ = np.zeros(len(self.all_buffers.size), np.int64)
        for chosen, best in zip(self.members, self.best, strict=True):
            offsets_[chosen] = best
        return offsets_

    def done(self) -> bool:
        """Whether the peak is small enough, or proven not to get there."""
        enough = self.bound if self.goal is None else max(self.goal, self.bound)
        impossible = self.goal is not None and self.bound > self.goal
        return impossible or self.peak() <= enough

    def improve(self, deadline: Deadline, watch: Watch) -> None:
        """Rounds of searches until done or out of time."""
        round_ = 0
        while not self.done() and not deadline.passed():
            before = self.bound
            watch(self.peak(), before)
            if not any(self.searchable(p) for p, peak in enumerate(self.peaks()) if peak > before):
                return
            if self.goal is None:
                self.descend(round_, deadline)
            else:
                self.pack_all(self.goal, round_, deadline)
            round_ += 1

    def descend(self, round_: int, deadline: Deadline) -> None:
        """Bisect between bound and peak; a height not reached with this round's work counts as too
        low.
        """
        low, target = self.bound, self.bound
        while not self.done() and not deadline.passed():
            if not self.pack_all(target, round_, deadline):
                low = target + self.unit
            low = max(low, self.bound)
            if low >= self.peak():
                return
            target = low + (self.peak() - low) // (2 * self.unit) * self.unit

    def pack_all(self, target: int, round_: int, deadline: Deadline) -> bool:
        """Pack every component within `target` bytes; False as soon as one fails."""
        for p, peak in enumerate(self.peaks()):
            if peak > target and not self.pack_within(p, target, round_, deadline):
                return False
        return True

    def pack_within(self, p: int, target: int, round_: int, deadline: Deadline) -> bool:
        if not self.searchable(p):
            return False
        state, offsets_ = self.search(p, target, round_, deadline)
        if state == FOUND:
            self.best[p] = offsets_
        elif state == NONE:
            self.bound = max(self.bound, (target // self.unit + 1) * self.unit)
        return state == FOUND

    def search(self, p: int, target: int, round_: int, deadline: Deadline) -> tuple[int, Ints]:
        """One round on one component: FOUND, NONE or STOPPED, and the offsets."""
        if p not in self.portfolios:
            self.portfolios[p] = Portfolio(self.components[p], self.switches, clock=deadline.clock)
        portfolio = self.portfolios[p]
        for looks, rule, order, by_failures in portfolio.attempts(round_):
            work_left = int(deadline.seconds_left * portfolio.looks_per_second)
            if work_left <= 0:
                return STOPPED, self.best[p]
            state = portfolio.run(target, min(looks, work_left), rule, order, by_failures)
            if state != STOPPED:
                return state, portfolio.offsets()
        seconds = min(CONSTRAINED_SECONDS * GROWTH**round_, deadline.seconds_left / 2)
        if self.switches.constrained and round_ >= CONSTRAINED and seconds > 0:
            return solve_constrained(self.components[p], target, self.unit, self.best[p], seconds)
        return STOPPED, self.best[p]

    def searchable(self, p: int) -> bool:
        """Whether the component is small enough for branch and bound."""
        return neighbours(self.components[p]) <= MOST_PAIRS


def neighbours(component: Sections) -> int:
    """Number of pairs of buffers that overlap in time."""
    first = np.sort(component.first)
    return int(
        (np.searchsorted(first, np.sort(component.last)) - np.arange(1, len(first) + 1)).sum()
    )


def _renumber(component: Sections) -> Sections:
    """Renumber the sections of a component from its own first."""
    start = int(component.first.min())
    return Sections(
        component.size,
        component.first - start,
        component.last - start,
        int(component.last.max()) - start,
    )
