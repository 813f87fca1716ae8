"""Portfolio: run every constructive algorithm, improve the best, and compute a lower bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product

import numpy as np

from ...cost_model.placement.arrays import Ints, graph_arrays
from ...ir.plan.placement import (
    LinkModel,
    MemoryRule,
    PlacementEdge,
    PlacementGraph,
    PlacementNode,
    uniform_target,
)
from ..question.deadline import Deadline, Watch, unwatched
from .algorithms.anneal import anneal, walk_from
from .algorithms.coarse import chains, units
from .algorithms.contiguous import contiguous
from .algorithms.earliest import PARALLEL_TRANSFERS, SEQUENTIAL_TRANSFERS, etf, sct
from .algorithms.exact import ExactModel
from .algorithms.favourites import relaxed
from .algorithms.ranked import SHARES, WEIGHTS, ranked
from .algorithms.topo import topo
from .bounds import lower_bound_us
from .options import PlacementOptions
from .packing import exceeds_total_memory, find_fitting
from .problem import Cooling, PlacementCandidate, PlacementProblem, serial_us, upward_rank
from .repair import repaired

CLOSED = 1e-6  # a relative gap of rounding: the placement is optimal
VISITS_PER_SECOND = 1e7  # operators that the local search simulates: sets how many steps it plans
MOST_STEPS = 5_000  # per operator: after so many, small graphs give nothing new
WARM, HOT, COLD = 1e-3, 3e-3, 1e-5  # temperatures of the local search, in makespans
CHUNK_VISITS = 4e5  # between two looks at the clock
LARGEST_PROGRAM = 20_000  # edges of the linear program of m-SCT inside the portfolio
LARGEST_PACKING = 50_000  # (operators + edges) * devices of a constraint model without times
LARGEST_MODEL = 3_000  # of one with times
LARGEST_FIRST_PROOF = 400  # of one with ports that is worth a try before the local search
LOCAL, LOCAL_OF_MODELS = 0.6, 0.35  # of the time for the local search; constraint models the rest
LIFETIMES = 0.3  # as many operators are simulated in that time where lifetimes must be followed
EFFORT = 0.06  # of the deterministic time of CP-SAT per second of the plan
LATE_EFFORT = 0.008  # of models that are rarely solved, each of two
TRY_EFFORT = 0.0015  # to find out that one is easy after all
PACKING_EFFORT = 0.1  # without times it counts faster
REPAIR_VISITS = 4e7  # of one try, about a second of counting bytes, and no more than
REPAIR = 0.2  # of the time


class PlacementSearch:
    """State of one search: candidates found so far, lower bound, and remaining time."""

    def __init__(
        self,
        problem: PlacementProblem,
        options: PlacementOptions,
        deadline: Deadline,
        watch: Watch = unwatched,
    ) -> None:
        self.problem, self.options, self.deadline = problem, options, deadline
        self.watch = watch  # is told seconds of the best makespan and of its bound
        self.planned = options.planned_seconds
        self.bound_us = lower_bound_us(problem)
        self.members: list[PlacementCandidate] = []
        self.infeasible = False

    @property
    def best(self) -> PlacementCandidate:
        return min(self.members, key=lambda c: c.sort_key)

    @property
    def fits(self) -> bool:
        return bool(self.members) and self.best.over_bytes == 0.0

    def tell(self) -> None:
        """Tell who looks on what there is so far."""
        if self.fits:
            self.watch(self.best.makespan_us / 1e6, self.bound_us / 1e6)

    @property
    def closed(self) -> bool:
        return self.fits and self.best.makespan_us <= self.bound_us * (1.0 + CLOSED)

    @property
    def size(self) -> int:
        """Size of a constraint model of the problem: (operators + edges) * devices."""
        return (self.problem.operators + len(self.problem.work.edges)) * self.problem.devices

    @property
    def models_first(self) -> bool:
        """Whether constraint models are run before the local search."""
        return self.size <= (
            LARGEST_MODEL if self.problem.link == "parallel" else LARGEST_FIRST_PROOF
        )

    @property
    def effort(self) -> float:
        """Deterministic CP-SAT time of each constraint model."""
        return self.planned * (EFFORT if self.models_first else LATE_EFFORT)

    @property
    def timed_out(self) -> bool:
        return not self.closed and not self.infeasible and self.deadline.passed()

    def run(self, effort_seconds: float) -> None:
        """Run all phases in turn, with the effort of `effort_seconds` on a typical core; stops when
        the gap is closed or the time is over.
        """
        self.planned = effort_seconds
        for phase in (self.make_fit, self.prove_first, self.improve, self.prove):
            self.tell()
            if self.closed or self.infeasible or (self.members and self.deadline.passed()):
                return
            phase()

    def construct(self) -> None:
        for construct in constructive(self.problem):
            self.members += [candidate for candidate in (construct(),) if candidate is not None]
            if self.closed or (self.members and self.deadline.passed()):
                return

    def make_fit(self) -> None:
        """If nothing fits: solve for memory alone, and move operators off overfull devices."""
        if self.fits:
            return
        self.infeasible = exceeds_total_memory(self.problem)
        if not self.infeasible and self.size <= LARGEST_PACKING:
            self.infeasible, device = find_fitting(
                self.problem, self.deadline.seconds_left, PACKING_EFFORT * self.planned
            )
            if device is not None:
                rank = -upward_rank(self.problem, 1.0)
                self.members.append(self.problem.evaluate_keys("packing", device, rank))
        if not self.infeasible:
            count = self.problem.operators
            visits = REPAIR_VISITS if self.problem.train else VISITS_PER_SECOND * LIFETIMES
            visits *= min(1.0, REPAIR * self.planned)
            steps = int(min(visits / count, MOST_STEPS * count))
            for seed, broken in enumerate(sorted(self.members, key=lambda c: c.sort_key)[:4]):
                if seed and self.deadline.passed():
                    return
                self.members.append(repaired(self.problem, broken, self.options.seed + seed, steps))

    def prove_first(self) -> None:
        """Constraint models that are likely to be solved, and a short try at others; under `infer`
        also whether any order fits.
        """
        if self.models_first and (self.fits or not self.problem.train):
            self.constrain(self.effort)
        elif self.fits and self.size <= LARGEST_MODEL:
            self.constrain(TRY_EFFORT * self.planned)

    def prove(self) -> None:
        """Constraint models that are only expected to improve the bound."""
        if not self.models_first and self.fits and self.size <= LARGEST_MODEL:
            self.constrain(self.effort)

    def constrain(self, effort: float) -> None:
        """Solve constraint models for a better bound and perhaps a better placement. The model
        without ports comes first: it is a relaxation and often gives the stronger bound in the
        time.
        """
        links: list[LinkModel] = ["parallel", self.problem.link]
        for link in dict.fromkeys(links):
            if self.closed or self.deadline.passed():
                return
            limit_us = self.best.makespan_us if self.fits else serial_us(self.problem)
            model = ExactModel(self.problem, link, self.best, limit_us)
            proof = model.solve(self.deadline.seconds_left, effort, self.bound_us)
            if proof.impossible and not self.fits:
                self.infeasible = True
                return
            if proof.candidate is not None:
                self.members.append(proof.candidate)
            self.bound_us = min(max(self.bound_us, proof.bound_us), limit_us)
            self.tell()

    def improve(self) -> None:
        """Local search from the best placements of several algorithms, then from the best one."""
        if not self.fits:
            return
        visits = VISITS_PER_SECOND * (1.0 if self.problem.train else LIFETIMES)
        fraction = LOCAL_OF_MODELS if self.models_first else LOCAL
        planned = fraction * self.planned * visits / self.problem.operators
        steps = min(planned, MOST_STEPS * self.problem.operators)
        for number, start in enumerate(self.starts(3)):
            self.walk(start, number, 0.1 * steps, WARM, coarse=number == 1)
        for number, hot in ((8, HOT), (9, WARM)):
            self.walk(self.best, number, 0.35 * steps, hot)

    def starts(self, most: int) -> list[PlacementCandidate]:
        """Best fitting placement of each algorithm, for the `most` best algorithms."""
        best: dict[str, PlacementCandidate] = {}
        for candidate in sorted(self.members, key=lambda c: c.sort_key):
            if candidate.over_bytes == 0.0:
                best.setdefault(candidate.algorithm, candidate)
        return list(best.values())[:most]

    def walk(
        self, start: PlacementCandidate, number: int, steps: float, hot: float, coarse: bool = False
    ) -> None:
        """One annealing run of `steps` steps, from a temperature of `hot` makespans down."""
        if self.closed or self.deadline.passed():
            return
        problem = self.problem
        blocks = chains(problem) if coarse else units(problem)
        walk = walk_from(problem, start, blocks)
        chunk = max(1, int(CHUNK_VISITS / problem.operators))
        rounds = max(1, int(steps / chunk))
        heat = np.geomspace(hot, COLD, rounds + 1) * start.makespan_us
        for i in range(rounds):
            seed = (self.options.seed * 1000 + number) * 100_000 + i
            cooling = Cooling(seed % 2**32, chunk, heat[i], heat[i + 1])
            anneal(problem.instance, blocks, problem.tail_us, walk, cooling)
            if self.deadline.passed() or walk.spans[1] <= self.bound_us * (1.0 + CLOSED):
                break
        name = f"{start.algorithm.split(' + ')[0]} + annealing"
        self.members.append(problem.evaluate_keys(name, walk.best_device, walk.best_key))
        self.tell()


def constructive(problem: PlacementProblem) -> Iterator[Callable[[], PlacementCandidate | None]]:
    """Constructive algorithms as functions without arguments, the fast ones first."""
    count: Ints = np.arange(problem.operators, dtype=np.int64)
    yield lambda: one_device(problem)
    for share, weight in product(SHARES, WEIGHTS):
        yield partial(ranked, problem, share, weight)
    yield lambda: etf(problem, PARALLEL_TRANSFERS)
    yield lambda: etf(problem, SEQUENTIAL_TRANSFERS)
    yield lambda: topo(problem)
    yield lambda: contiguous(problem, count)
    yield lambda: contiguous(problem, np.argsort(-upward_rank(problem, 1.0), kind="stable"))
    if len(problem.work.edges) <= LARGEST_PROGRAM:
        apart = cache(partial(relaxed, problem))
        yield lambda: sct(problem, PARALLEL_TRANSFERS, 0.5, apart())
        yield lambda: sct(problem, SEQUENTIAL_TRANSFERS, 0.1, apart())


def one_device(problem: PlacementProblem) -> PlacementCandidate:
    """Everything on the device that runs it fastest; ties go to the one with the most memory."""
    work = problem.work
    total = work.duration_us.sum(axis=0)
    d = int(np.lexsort((-work.capacity, total))[0])
    device = np.full(problem.operators, d, np.int64)
    return problem.evaluate_order(
        "one device", device, np.arange(problem.operators, dtype=np.int64)
    )


def warm(rule: MemoryRule, repairs: bool) -> None:
    """Run the numba functions of a memory rule once on a tiny graph, so that compilation is not search
    time; that of repairs, which takes longest, only where they may be needed."""
    nodes = tuple(PlacementNode(i, 1.0, mem_output=1.0) for i in range(3))
    graph = PlacementGraph(nodes, (PlacementEdge(0, 1, 1.0), PlacementEdge(0, 2, 1.0)))
    problem = PlacementProblem(
        graph_arrays(graph, uniform_target(2, 9.0, 0.0, 0.1)), "duplex", rule
    )
    candidates = [
        candidate
        for candidate in (construct() for construct in constructive(problem))
        if candidate is not None
    ]
    if repairs:
        repaired(problem, candidates[0], 0, 1)
    walk = walk_from(problem, candidates[0], chains(problem))
    anneal(problem.instance, units(problem), problem.tail_us, walk, Cooling(0, 1, 1.0, 1.0))
    lower_bound_us(problem)
