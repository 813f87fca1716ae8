"""Entry point of the planner for any cluster: of one kind of device, or of several."""

from __future__ import annotations

from collections.abc import Callable

from ...cost_model.rates import with_rates
from ...ir.devices.cluster import Cluster
from ...ir.devices.mixed import as_uniform
from ...ir.errors import UsageError
from ...ir.model.model import Model
from ...ir.passes import Observer
from ...ir.plan.plan import Plan
from ..question.options import PlanOptions
from ..search.plan import plan as plan_uniform
from .objective import plan_for_objective


def plan(
    model: Model,
    cluster: Cluster,
    options: PlanOptions,
    observer: Observer | None = None,
    watch: Callable[[float], None] | None = None,
) -> Plan:
    """The best plan found that fits and keeps the limits; the best so far where time is up. `watch` is
    told seconds of the best step so far, on devices of one kind.

    Raises InfeasibleError (nothing fits or keeps the limits), LimitError (time was up before anything
    that fits was found) and UsageError.
    """
    options = options.resolved()
    options.check()

    def search(devices: Cluster, options: PlanOptions) -> Plan:
        return with_rates(fastest(model, devices, options, observer, watch))

    if options.chooses_devices:
        return plan_for_objective(cluster, options, search)
    return search(cluster, options)


def fastest(
    model: Model,
    cluster: Cluster,
    options: PlanOptions,
    observer: Observer | None = None,
    watch: Callable[[float], None] | None = None,
) -> Plan:
    """The fastest plan found that fits; the best so far where time is up."""
    if not cluster.parts:
        return plan_uniform(model, cluster, options, observer, watch)
    if options.pins or options.compress != "none" or options.gradient_precision:
        raise UsageError(
            "a mixed cluster is planned without --pin, --compress and --gradient-precision"
        )
    uniform = as_uniform(cluster)
    if uniform is not None:
        return plan_uniform(model, uniform, options, observer, watch)
    if not options.target.extras:
        raise UsageError(f"{options.engine} trains on devices of one kind; plan for a part of them")
    from .search import MixedSearch  # loads networkx, which plans for one kind do without

    return MixedSearch(model, cluster, options).run()
