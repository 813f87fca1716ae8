"""The answer to a question for a plan: the best one found, or why there is none."""

from __future__ import annotations

from ...ir.devices.cluster import Cluster
from ...ir.errors import LimitError, PlaitError, UsageError
from ...ir.model import Model
from ...ir.plan.plan import Plan
from ..options import PlanOptions
from .driver import Space
from .infeasible import infeasible
from .to_plan import assemble


def plan(model: Model, cluster: Cluster, options: PlanOptions) -> Plan:
    """The fastest plan that fits, under the cost model; the best so far where time is up.

    Raises InfeasibleError (nothing fits: names the device, term, shortfall and fixes) and UsageError.
    """
    space = Space.of(model, cluster, options)
    space.run()
    if not space.fitting():
        raise no_plan(space)
    return assemble(space, min(space.found, key=space.order))


def no_plan(space: Space) -> PlaitError:
    """Why a space has no plan, and what would give one."""
    model, options = space.evaluator.model, space.options
    if space.found:
        return infeasible(space)
    if space.clock.stopped:
        return LimitError("time was up before any strategy was priced; no plan is written")
    return UsageError(
        f"no strategy splits {model.name} with global batch {model.batch} over "
        f"{space.cluster.devices} devices with roles {', '.join(options.roles)}"
        + "".join(f", pin {pin.glob}:{pin.strategy}" for pin in options.pins)
    )
