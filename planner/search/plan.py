"""Entry point of the planner: the best plan of a search, or the reason why there is none."""

from __future__ import annotations

from ...ir.analysis.dataflow import AnalyseAxes
from ...ir.devices.cluster import Cluster
from ...ir.errors import LimitError, PlaitError, UsageError
from ...ir.model.model import Model
from ...ir.passes import Observer, Pass
from ...ir.plan.plan import Plan
from ..question.options import PlanOptions
from .driver import SearchSpace
from .infeasible import infeasible
from .to_plan import assemble
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
    model: Model, cluster: Cluster, options: PlanOptions, observer: Observer | None = None
) -> Plan:
    """The fastest plan that fits, under the cost model; the best so far where time is up.

    Raises InfeasibleError (nothing fits: names device, term, shortfall and hints), LimitError (time
    was up before anything was priced) and UsageError.
    """
    space = SearchSpace.create(model, cluster, options)
    if observer is not None:
        observer(AnalyseAxes(), space.pricer.function_prices.flow)
    space.run()
    if not space.fitting():
        raise no_plan(space)
    return assemble(space, min(space.candidates, key=space.sort_key), observer)


def no_plan(space: SearchSpace) -> PlaitError:
    """The error that says why a space has no plan, and what would give one."""
    model, options = space.pricer.model, space.options
    if space.candidates:
        return infeasible(space)
    if space.deadline.stopped:
        return LimitError("time was up before any strategy was priced; no plan is written")
    return UsageError(
        f"no plan for {model.name} with global batch {model.batch} on {space.cluster.devices} devices, "
        f"roles {', '.join(options.roles)}"
        + "".join(f", pin {pin.glob}:{pin.strategy}" for pin in options.pins)
        + f": {'; '.join(reasons(space))}"
    )
