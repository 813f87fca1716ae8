"""Portfolio of branch-and-bound runs over orders and rules, with more work every round."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from ...question.deadline import Clock, monotonic
from . import branch
from .greedy import orders
from .sections import Ints, Sections

FIRST_LOOKS = 100_000  # buffers looked at by one run of the first round
GROWTH = 1.7
NOISE = 0.6  # how far keys of buffers are shaken, at most
RULES = (branch.LOWEST_TIGHTEST, branch.LOWEST_FAILED, branch.FAILED, branch.FULLEST)


class Switches(msgspec.Struct, frozen=True):
    """Switches for parts of the search; the optimum does not depend on them."""

    bounded: bool = True
    splitting: bool = True
    by_failures: bool = True
    constrained: bool = True
    rules: tuple[int, ...] = RULES


EVERYTHING = Switches()


class Portfolio:
    """Searches one component for packings under a height; keeps failure counts between runs."""

    def __init__(
        self, component: Sections, switches: Switches, seed: int = 0, clock: Clock = monotonic
    ) -> None:
        self.order = np.argsort(component.first, kind="stable")
        self.component = component.of(self.order)
        self.switches, self.clock = switches, clock
        self.board = branch.board(self.component)
        self.looks_per_second = 1e6  # at least; measured while it runs
        self.random = np.random.default_rng(seed)

    def run(self, height: int, looks: int, rule: int, order: Ints, by_failures: bool) -> int:
        """One search; see `branch.search`."""
        branch.clear(self.board)
        self.board.rank[order] = np.arange(len(order))
        start = self.clock()
        switches, sections = self.switches, self.component.count
        branching = branch.Branching(rule, by_failures, switches.bounded, switches.splitting)
        state, looked = branch.search(self.board, sections, height, looks, branching)
        seconds = self.clock() - start
        self.looks_per_second = max(self.looks_per_second, looked / max(seconds, 1e-3))
        return int(state)

    def offsets(self) -> Ints:
        """Offsets of the last search, in the component's original order."""
        offsets_ = np.empty_like(self.board.base)
        offsets_[self.order] = self.board.base
        return offsets_

    def attempts(self, round_: int) -> Iterator[tuple[int, int, Ints, bool]]:
        """(work limit, rule, order, by_failures) of every run of a round."""
        looks = int(FIRST_LOOKS * GROWTH**round_)
        for order in orders(self.component):
            for rule in self.switches.rules:
                for by_failures in (False, True) if self.switches.by_failures else (False,):
                    yield looks, rule, self.shaken(order, round_), by_failures

    def shaken(self, order: Ints, round_: int) -> Ints:
        """The order itself in the first round, later a random local perturbation of it."""
        if round_ == 0:
            return order
        reach = len(order) * NOISE * self.random.uniform()
        return order[np.argsort(np.arange(len(order)) + self.random.uniform(0, reach, len(order)))]
