"""Entry point of the planner: the best plan of a search, or the reason why there is none."""

from __future__ import annotations

from itertools import chain

from ...ir.analysis.dataflow import AnalyseAxes
from ...ir.devices.cluster import Cluster
from ...ir.errors import LimitError, PlaitError, UsageError
from ...ir.model.model import Model
from ...ir.passes import Observer, Pass
from ...ir.plan.plan import Plan
from ...ir.text.units import gib
from ..compression.collectives import check_robust
from ..question.candidate import Candidate
from ..question.deadline import Watch
from ..question.options import PlanOptions
from ..question.ranking import fitting, ranked
from .driver import SearchSpace
from .families import with_families
from .first_plan import first_fitting, never_fits, smallest_candidates
from .infeasible import impossible, infeasible
from .memory_balance import memory_balanced
from .to_plan import assemble, least_seconds
from .unsplittable import reasons


class Search(Pass[Model, Plan], frozen=True):
    """Search the fastest plan of a model on a cluster; the observer is shown the passes inside."""

    cluster: Cluster
    options: PlanOptions
    observer: Observer | None = None
    name = "search"

    def apply(self, value: Model) -> Plan:
        return plan(value, self.cluster, self.options, self.observer)


def plan(
    model: Model,
    cluster: Cluster,
    options: PlanOptions,
    observer: Observer | None = None,
    watch: Watch | None = None,
) -> Plan:
    """The fastest plan that fits, under the cost model, and the simplest of those that are as fast; the
    best so far where time is up. `watch` is told seconds of the best step so far and of the least that a
    step can take: that at peak rate, until only mixes of layers, which have bounds, are left.

    An interrupt (Ctrl-C) ends the search as a time limit does, once a first plan is there. Raises
    InfeasibleError (nothing fits: names device, term, shortfall and hints), LimitError (time was up
    before anything that fits was found) and UsageError.
    """
    space = SearchSpace.create(model, cluster, options)
    if observer is not None:
        observer(AnalyseAxes(), space.pricer.function_prices.flow)
    if watch is not None:
        least = least_seconds(space.pricer)
        space.watch = lambda best, bound: watch(best, min(best, max(bound, least)))
    refused = never_fits(space)
    if refused:
        space.candidates += chain.from_iterable(smallest_candidates(space))
    first = None if refused else first_fitting(space)
    if first is not None:
        space.watch(first.step_seconds, 0.0)
    try:
        if not space.candidates:
            searched(space)
    except KeyboardInterrupt:
        if first is None:
            raise
        space.deadline.stop()
    if first is not None and space.best is None:
        space.candidates.append(first)
    if space.best is None:
        raise no_plan(space)
    return chosen_plan(space, simplest(space), observer)


def searched(space: SearchSpace) -> SearchSpace:
    """The space after its search; of what its engine refuses the error has a change that gives a plan.

    Raises UsageError.
    """
    try:
        space.run()
        space.candidates += memory_balanced(space)
    except UsageError as error:
        if all(space.refusal(pin.strategy) is None for pin in space.options.pins):
            raise
        raise impossible(space, str(error)) from None
    return space


def simplest(space: SearchSpace) -> Candidate:
    """Of the candidates that fit and are as fast as the fastest, to the options' `simpler_within`, the
    fastest of those with the fewest kinds of layers; the fastest of all where none fits or layers are
    pinned.

    Repeats of one measured step lie 1.6 to 5 % apart, so half a percent is not known to be a gain, and
    kinds of layers cost functions to compile and rows to read."""
    best = space.best
    if best is None or space.options.pins:
        return next(ranked(space.candidates, space.memory_limit_bytes))
    limit = best.step_seconds * (1 + space.options.simpler_within)
    equal = [c for c in space.candidates if best.step_seconds <= c.step_seconds <= limit]
    return min(fitting(equal, space.memory_limit_bytes), key=kinds_of_layers)


def kinds_of_layers(candidate: Candidate) -> int:
    """Number of strategies and memory actions that layers of a candidate take."""
    return len({(d.strategy, d.memory) for d in candidate.decisions})


def chosen_plan(space: SearchSpace, best: Candidate, observer: Observer | None = None) -> Plan:
    """The plan of a candidate of a space that was searched, and what every family would cost."""
    answer = with_families(space, assemble(space, best, observer), best)
    check_robust(space.options.compress, answer)
    return answer


def no_plan(space: SearchSpace) -> PlaitError:
    """The error that says why a space has no plan, and what would give one."""
    model, options = space.pricer.model, space.options
    if space.deadline.stopped and not (space.candidates and never_fits(space)):
        return LimitError(f"time was up: nothing that fits was found yet{_smallest(space)}")
    if space.candidates:
        return infeasible(space)
    return impossible(
        space,
        f"no plan for {model.name} with global batch {model.batch} on {space.cluster.devices} devices, "
        f"roles {', '.join(options.roles)}"
        + "".join(f", pin {pin.glob}:{pin.strategy}" for pin in options.pins)
        + f": {'; '.join(reasons(space))}",
    )


def _smallest(space: SearchSpace) -> str:
    """What the smallest candidate so far needs, for a message."""
    if not space.candidates:
        return "; give it more time"
    least = min(space.candidates, key=lambda c: c.peak_bytes)
    return (
        f"; the smallest so far ({least.strategy_text}, {least.memory_text}) needs "
        f"{gib(least.peak_bytes)} of {gib(space.memory_limit_bytes)}; give it more time"
    )
