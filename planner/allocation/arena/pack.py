"""Address plans with a certificate: first fit, then branch and bound, until done or out of time.

Parts of time that share no buffer are packed apart. The peak of every packing found is an upper
bound; the most bytes live at once, and heights at which a search ended empty, are lower bounds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import gcd

import numpy as np

from ....ir.plan.allocation import Buffer, Packing, Status
from .branch import FOUND, NONE, STOPPED
from .constraint import constrained
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
    seed: int = 0,
) -> Packing:
    """Offsets for buffers, so that none that are live at once share a byte.

    Stops when the peak is within `capacity_bytes`; with `minimise`, or without a capacity, it goes
    on until the peak is proved least. Ends after `time_limit_seconds` of wall time with the best
    found. Work is a mixture of Moffitt, MiniMalloc (ASPLOS 2023): canonical packings, section
    bounds, decomposition in time; and restarts that learn where searches fail.
    """
    goal = None if minimise else capacity_bytes
    known = [i for i, b in enumerate(buffers) if b.size > 0]
    offsets = np.zeros(len(buffers), np.int64)
    state = _Parts(sections([buffers[i] for i in known]), goal, switches, seed)
    state.improve(time.perf_counter() + time_limit_seconds)
    offsets[known] = state.offsets()
    peak, bound = state.peak(), state.bound
    return Packing(tuple(offsets.tolist()), peak, bound, status_of(peak, bound, capacity_bytes))


def status_of(peak: int, bound: int, capacity: int | None) -> Status:
    """What a peak and the bound that no peak is under say, of a capacity if one was asked for."""
    if capacity is not None and bound > capacity:
        return "infeasible"
    if peak == bound:
        return "optimal"
    return "feasible" if capacity is None or peak <= capacity else "unknown"


class _Parts:
    """The parts of a problem with the best packing of each; `bound` holds for their maximum."""

    def __init__(self, whole: Sections, goal: int | None, switches: Switches, seed: int) -> None:
        self.whole, self.goal = whole, goal
        self.switches, self.seed = switches, seed
        self.members = whole.parts()
        self.parts = [_narrow(whole.of(chosen)) for chosen in self.members]
        self.best = [greedy(part) for part in self.parts]
        self.bound = whole.bound()
        self.portfolios: dict[int, Portfolio] = {}
        self.unit = gcd(*whole.size.tolist()) if len(whole.size) else 1

    def peaks(self) -> list[int]:
        return [height(part, best) for part, best in zip(self.parts, self.best, strict=True)]

    def peak(self) -> int:
        return max(self.peaks(), default=0)

    def offsets(self) -> Ints:
        found = np.zeros(len(self.whole.size), np.int64)
        for chosen, best in zip(self.members, self.best, strict=True):
            found[chosen] = best
        return found

    def done(self) -> bool:
        """The peak is small enough, or it is known that it cannot be."""
        enough = self.bound if self.goal is None else max(self.goal, self.bound)
        impossible = self.goal is not None and self.bound > self.goal
        return impossible or self.peak() <= enough

    def improve(self, deadline: float) -> None:
        """Rounds of searches until done or out of time."""
        round_ = 0
        while not self.done() and time.perf_counter() < deadline:
            before = self.bound
            if not any(self.searchable(p) for p, peak in enumerate(self.peaks()) if peak > before):
                return
            if self.goal is None:
                self.descend(round_, deadline)
            else:
                self.reach(self.goal, round_, deadline)
            round_ += 1

    def descend(self, round_: int, deadline: float) -> None:
        """Bisect between bound and peak; what this round's work does not reach counts as too low."""
        low, target = self.bound, self.bound
        while not self.done() and time.perf_counter() < deadline:
            if not self.reach(target, round_, deadline):
                low = target + self.unit
            low = max(low, self.bound)
            if low >= self.peak():
                return
            target = low + (self.peak() - low) // (2 * self.unit) * self.unit

    def reach(self, target: int, round_: int, deadline: float) -> bool:
        """Bring every part to `target` bytes or less; False as soon as one is not brought there."""
        for p, peak in enumerate(self.peaks()):
            if peak > target and not self.bring(p, target, round_, deadline):
                return False
        return True

    def bring(self, p: int, target: int, round_: int, deadline: float) -> bool:
        if not self.searchable(p):
            return False
        state, found = self.search(p, target, round_, deadline)
        if state == FOUND:
            self.best[p] = found
        elif state == NONE:
            self.bound = max(self.bound, (target // self.unit + 1) * self.unit)
        return state == FOUND

    def search(self, p: int, target: int, round_: int, deadline: float) -> tuple[int, Ints]:
        """One round on one part: FOUND, NONE or STOPPED, and the offsets."""
        if p not in self.portfolios:
            self.portfolios[p] = Portfolio(self.parts[p], self.switches, self.seed)
        portfolio = self.portfolios[p]
        for looks, rule, order, by_failures in portfolio.attempts(round_):
            left = int((deadline - time.perf_counter()) * portfolio.looks_per_second)
            if left <= 0:
                return STOPPED, self.best[p]
            state = portfolio.run(target, min(looks, left), rule, order, by_failures)
            if state != STOPPED:
                return state, portfolio.offsets()
        seconds = min(CONSTRAINED_SECONDS * GROWTH**round_, (deadline - time.perf_counter()) / 2)
        if self.switches.constrained and round_ >= CONSTRAINED and seconds > 0:
            return constrained(self.parts[p], target, self.unit, self.best[p], seconds)
        return STOPPED, self.best[p]

    def searchable(self, p: int) -> bool:
        """Whether the part's neighbours can be listed."""
        return neighbours(self.parts[p]) <= MOST_PAIRS


def neighbours(part: Sections) -> int:
    """Pairs of buffers that meet."""
    first = np.sort(part.first)
    return int((np.searchsorted(first, np.sort(part.last)) - np.arange(1, len(first) + 1)).sum())


def _narrow(part: Sections) -> Sections:
    """The part with sections counted from its own first."""
    start = int(part.first.min())
    return Sections(part.size, part.first - start, part.last - start, int(part.last.max()) - start)
