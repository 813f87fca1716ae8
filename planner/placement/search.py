"""Entry point of placement: one algorithm or the portfolio, simulated, with a proven gap."""

from __future__ import annotations

import msgspec
import numpy as np

from ...cost_model.placement.arrays import graph_arrays
from ...ir.errors import InfeasibleError, LimitError
from ...ir.plan.placement import Placement, PlacementGraph, PlacementTarget, check_graph
from ..question.deadline import Clock, Deadline, Watch, monotonic, unwatched
from .algorithms.earliest import etf, sct
from .algorithms.ranked import SHARES, WEIGHTS, ranked
from .algorithms.topo import topo
from .nested import nested
from .options import PlacementOptions
from .packing import always_fits
from .portfolio import CLOSED, PlacementSearch, warm
from .problem import PlacementProblem


class PlacementOutcome(msgspec.Struct, frozen=True):
    """A placement, and whether the time limit cut its search short."""

    placement: Placement
    timed_out: bool


def place(
    graph: PlacementGraph,
    target: PlacementTarget,
    options: PlacementOptions | None = None,
    clock: Clock = monotonic,
    watch: Watch = unwatched,
) -> PlacementOutcome:
    """A placement that fits, with a lower bound on the makespan of every placement.

    The time limit of the options is measured by `clock`; `watch` is told seconds of the best makespan
    so far and of the bound.

    Raises InfeasibleError when it is proven that none fits, LimitError when none was found, UsageError
    for unknown options, FileError for invalid graphs.
    """
    options = options or PlacementOptions()
    options.check()
    check_graph(graph)
    if options.seconds is not None and options.algorithm in ("auto", "exact"):
        repairs = not always_fits(graph, target)
        warm(options.memory_rule, repairs)  # the limit is of the search, not of compiling it
    deadline = Deadline(options.seconds, clock)
    work = graph_arrays(graph, target)
    if not options.colocation:
        work.operators["unit"] = np.arange(len(work.operators))
    problem = PlacementProblem(work, options.link, options.memory_rule)
    search_with = nested if options.algorithm == "auto" else _single
    search, timed_out = search_with(problem, options, deadline, watch)
    if not search.fits:
        raise (InfeasibleError if search.infeasible else LimitError)(_shortfall(search))
    return PlacementOutcome(_placement(graph, target, search), timed_out)


def _single(
    problem: PlacementProblem, options: PlacementOptions, deadline: Deadline, watch: Watch
) -> tuple[PlacementSearch, bool]:
    """Run one algorithm; a placement that does not fit is repaired, or solved for memory alone."""
    search = PlacementSearch(problem, options, deadline, watch)
    if options.algorithm == "exact":
        search.construct()
        search.make_fit()
        if search.fits:
            search.constrain(np.inf)
        return search, search.timed_out
    makers = {
        "m-topo": lambda: [topo(problem)],
        "m-etf": lambda: [etf(problem)],
        "m-sct": lambda: [sct(problem)],
        "list": lambda: [ranked(problem, share, weight) for share in SHARES for weight in WEIGHTS],
    }
    search.members += makers[options.algorithm]()
    if not search.fits:
        search.make_fit()
    return search, search.timed_out


def _placement(
    graph: PlacementGraph, target: PlacementTarget, search: PlacementSearch
) -> Placement:
    problem, ids = search.problem, search.problem.work.operators["id"]
    best = problem.evaluate_order(search.best.algorithm, search.best.device, search.best.order)
    used = problem.used_bytes(best.device)
    gap = max(0.0, 1.0 - search.bound_us / best.makespan_us) if best.makespan_us else 0.0
    return Placement(
        device={str(i): d for i, d in zip(ids.tolist(), best.device.tolist(), strict=True)},
        order=tuple(ids[best.order].tolist()),
        makespan_us=best.makespan_us,
        lower_bound_us=search.bound_us,
        gap=gap,
        status="optimal" if gap <= CLOSED else "feasible",
        peak_memory=tuple(used.tolist()),
        algorithm=best.algorithm,
        link=problem.link,
        memory_rule=problem.rule,
        target=target,
        graph=graph,
    )


def _shortfall(search: PlacementSearch) -> str:
    """Message of InfeasibleError: the largest shortage, and the memory that would suffice."""
    problem, best = search.problem, search.best
    problem.evaluate_order(best.algorithm, best.device, best.order)
    used = problem.used_bytes(best.device)
    worst = int((used - problem.work.capacity).argmax())
    proved = "no placement fits"
    verdict = proved if search.infeasible else "no placement was found, though one may exist"
    return (
        f"{verdict}: the nearest needs {used[worst]:.12g} bytes on device {worst}, which has "
        f"{problem.work.capacity[worst]:.12g}; {used.max():.12g} bytes on every device would fit"
    )
