"""The portfolio: every constructive algorithm once, the best of them improved, a bound beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import numpy as np

from ...cost_model.placement import work_of
from ...ir.placement import (
    LinkModel,
    PlacementEdge,
    PlacementGraph,
    PlacementNode,
    uniform_target,
)
from .anneal import anneal, walk_from
from .bounds import lower_bound_us
from .coarse import chains, units
from .contiguous import contiguous
from .earliest import PARALLEL_TRANSFERS, SEQUENTIAL_TRANSFERS, etf, sct
from .exact import Exact
from .options import RULES, PlacementOptions
from .packing import fitting
from .problem import Candidate, Problem, serial_us, upward_rank
from .ranked import SHARES, WEIGHTS, ranked
from .repair import repaired
from .topo import topo

CLOSED = 1e-6  # a relative gap of rounding: the placement is optimal
VISITS_PER_SECOND = 6e6  # operators that the local search simulates: sets how many steps it plans
MOST_STEPS = 20_000  # per operator: after so many, small graphs give nothing new
HOT, COLD = 3e-3, 1e-5  # temperatures of the local search, in makespans
CHUNK_VISITS = 4e5  # between two looks at the clock
LARGEST_PROGRAM = 20_000  # edges of the linear program of m-SCT inside the portfolio
LARGEST_MODEL = 12_000  # (operators + edges) * devices of a constraint model
LARGEST_PACKING = 50_000  # of one without times
LARGEST_SHORT = 3_000  # of one that is worth a try before the local search
LOCAL, LOCAL_OF_SMALL = 0.6, 0.25  # of the time for the local search; constraint models the rest
SHORT_EFFORT, LONG_EFFORT = 0.02, 0.1  # of a second is this in the deterministic time of CP-SAT
REPAIR_VISITS = 4e7


class Search:
    """One search: the best candidate so far, the bound, and the time that is left."""

    def __init__(self, problem: Problem, options: PlacementOptions, began: float) -> None:
        self.problem, self.options = problem, options
        self.planned = options.planned_seconds
        self.deadline = np.inf if options.seconds is None else began + options.seconds
        self.bound_us = lower_bound_us(problem)
        self.members: list[Candidate] = []
        self.infeasible = False

    @property
    def left(self) -> float:
        return self.deadline - time.perf_counter()

    @property
    def best(self) -> Candidate:
        return min(self.members, key=lambda c: c.worth)

    @property
    def fits(self) -> bool:
        return bool(self.members) and self.best.over_bytes == 0.0

    @property
    def closed(self) -> bool:
        return self.fits and self.best.makespan_us <= self.bound_us * (1.0 + CLOSED)

    @property
    def size(self) -> int:
        """Of a constraint model of the problem."""
        return (self.problem.operators + len(self.problem.work.edges)) * self.problem.devices

    def run(self) -> None:
        """Every phase in turn; stops when the gap is closed or the time is over."""
        for phase in (self.construct, self.make_fit, self.prove_short, self.improve, self.prove):
            if self.closed or self.infeasible or (self.members and self.left <= 0):
                return
            phase()

    def construct(self) -> None:
        for make in constructive(self.problem):
            self.members += [found for found in (make(),) if found is not None]
            if self.closed or (self.members and self.left <= 0):
                return

    def make_fit(self) -> None:
        """If nothing fits: solve for memory alone, and take operators off overfull devices."""
        if self.fits:
            return
        if self.size <= LARGEST_PACKING:
            self.infeasible, device = fitting(
                self.problem, self.left, LONG_EFFORT * self.planned
            )
            if device is not None:
                rank = -upward_rank(self.problem, 1.0)
                self.members.append(self.problem.by_key("packing", device, rank))
        if not self.infeasible:
            count = self.problem.operators
            steps = int(min(REPAIR_VISITS / count, MOST_STEPS * count))
            for seed, broken in enumerate(sorted(self.members, key=lambda c: c.worth)[:4]):
                self.members.append(
                    repaired(self.problem, broken, self.options.seed + seed, steps)
                )

    def prove_short(self) -> None:
        """Of small problems; also whether any order fits, where lifetimes decide."""
        if (self.fits or not self.problem.train) and self.size <= LARGEST_SHORT:
            self.constrain(SHORT_EFFORT * self.planned)

    def prove(self) -> None:
        if self.fits and self.size <= LARGEST_MODEL:
            self.constrain(LONG_EFFORT * self.planned)

    def constrain(self, effort: float) -> None:
        """Constraint models: a better bound, perhaps a better placement. Without ports first: that
        is a relaxation of the others, and often the stronger bound in the time there is."""
        links: list[LinkModel] = ["parallel", self.problem.link]
        for link in dict.fromkeys(links):
            if self.closed or self.left <= 0:
                return
            limit_us = self.best.makespan_us if self.fits else serial_us(self.problem)
            model = Exact(self.problem, link, self.best, limit_us)
            proof = model.solve(self.left, effort / len(set(links)), self.bound_us)
            if proof.impossible and not self.fits:
                self.infeasible = True
                return
            if proof.found is not None:
                self.members.append(proof.found)
            self.bound_us = min(max(self.bound_us, proof.bound_us), limit_us)

    def improve(self) -> None:
        """Local search from the best starts, then from the best found: shorter and hotter first."""
        if not self.fits:
            return
        part = LOCAL_OF_SMALL if self.size <= LARGEST_SHORT else LOCAL
        planned = part * self.planned * VISITS_PER_SECOND / self.problem.operators
        budget = min(planned, MOST_STEPS * self.problem.operators)
        for round_, start in enumerate(self.starts(3)):
            self.walk(start, round_, 0.07 * budget, HOT, coarse=round_ == 1)
        for round_, share in enumerate((0.3, 0.5)):
            self.walk(self.best, 8 + round_, share * budget, HOT)

    def starts(self, most: int) -> list[Candidate]:
        """The best placements with different makespans."""
        distinct = {c.makespan_us: c for c in self.members if c.over_bytes == 0.0}
        return [distinct[span] for span in sorted(distinct)][:most]

    def walk(
        self, start: Candidate, number: int, steps: float, hot: float, coarse: bool = False
    ) -> None:
        """One annealing of `steps` steps, from a temperature of `hot` makespans down."""
        if self.closed or self.left <= 0:
            return
        problem = self.problem
        blocks = chains(problem) if coarse else units(problem)
        walk = walk_from(problem, start, blocks)
        chunk = max(1, int(CHUNK_VISITS / problem.operators))
        rounds = max(1, int(steps / chunk))
        heat = np.geomspace(hot, COLD, rounds + 1) * start.makespan_us
        for i in range(rounds):
            seed = (self.options.seed * 1000 + number) * 100_000 + i
            anneal(problem.work, blocks, problem.mode, problem.train, problem.tail_us, walk,
                   seed % 2**32, heat[i], heat[i + 1], chunk)  # fmt: skip
            if self.left <= 0 or walk.spans[1] <= self.bound_us * (1.0 + CLOSED):
                break
        name = f"{start.algorithm.split(' + ')[0]} + annealing"
        self.members.append(problem.by_key(name, walk.best_device, walk.best_key))


def constructive(problem: Problem) -> Iterator[Callable[[], Candidate | None]]:
    """Makers of placements, the quick ones first."""
    count = np.arange(problem.operators)
    yield lambda: one_device(problem)
    for share, weight in product(SHARES, WEIGHTS):
        yield partial(ranked, problem, share, weight)
    yield lambda: etf(problem, PARALLEL_TRANSFERS)
    yield lambda: etf(problem, SEQUENTIAL_TRANSFERS)
    yield lambda: topo(problem)
    yield lambda: contiguous(problem, count)
    yield lambda: contiguous(problem, np.argsort(-upward_rank(problem, 1.0), kind="stable"))
    if len(problem.work.edges) <= LARGEST_PROGRAM:
        yield lambda: sct(problem, PARALLEL_TRANSFERS, 0.5)
        yield lambda: sct(problem, SEQUENTIAL_TRANSFERS, 0.1)


def one_device(problem: Problem) -> Candidate:
    """Everything on the device that runs it fastest, or on the roomiest of those."""
    work = problem.work
    total = work.duration_us.sum(axis=0)
    d = int(np.lexsort((-work.capacity, total))[0])
    device = np.full(problem.operators, d, np.int64)
    return problem.strictly("one device", device, np.arange(problem.operators))


def warm() -> None:
    """Run everything compiled once on two operators, so that compilation is not search time."""
    nodes = tuple(PlacementNode(i, 1.0, mem_output=1.0) for i in range(3))
    graph = PlacementGraph(nodes, (PlacementEdge(0, 1, 1.0), PlacementEdge(0, 2, 1.0)))
    for rule in RULES:
        problem = Problem(work_of(graph, uniform_target(2, 9.0, 0.0, 0.1)), "duplex", rule)
        made = [found for found in (make() for make in constructive(problem)) if found is not None]
        repaired(problem, made[0], 0, 1)
        walk = walk_from(problem, made[0], chains(problem))
        anneal(problem.work, units(problem), problem.mode, problem.train, problem.tail_us, walk,
               0, 1.0, 1.0, 1)  # fmt: skip
        lower_bound_us(problem)
