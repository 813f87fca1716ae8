"""Entry point of the planner for any cluster: of one kind of device, or of several."""

from __future__ import annotations

from collections.abc import Sequence

from ...cost_model.rates import with_rates
from ...ir.devices.cluster import Cluster
from ...ir.devices.mixed import as_slowest_devices, as_uniform
from ...ir.errors import UsageError
from ...ir.model.model import Model
from ...ir.passes import Observer
from ...ir.plan.plan import Plan
from ..question.deadline import Watch, unwatched, without_bound
from ..question.options import PlanOptions
from ..question.pins import Pin
from ..search.plan import plan as plan_uniform
from .objective import plan_for_objective


def plan(
    model: Model,
    cluster: Cluster,
    options: PlanOptions,
    observer: Observer | None = None,
    watch: Watch | None = None,
) -> Plan:
    """The best plan found that fits and keeps the limits; the best so far where time is up. `watch` is
    told seconds of the best step so far and of the least that a step can take.

    Raises InfeasibleError (nothing fits or keeps the limits), LimitError (time was up before anything
    that fits was found) and UsageError.
    """
    options = options.resolved()
    options.check()

    if watch is not None and options.chooses_devices:
        watch = without_bound(watch)

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
    watch: Watch | None = None,
) -> Plan:
    """The fastest plan found that fits; the best so far where time is up."""
    if not cluster.parts:
        return plan_uniform(model, cluster, options, observer, watch)
    if options.compress != "none" or options.gradient_precision:
        raise UsageError("a mixed cluster is planned without --compress and --gradient-precision")
    uniform = as_uniform(cluster)
    if uniform is not None:
        return plan_uniform(model, uniform, options, observer, watch)
    if not options.target.extras:
        raise UsageError(f"{options.engine} trains on devices of one kind; plan for a part of them")
    if options.pins and all(pin.strategy.devices == cluster.devices for pin in options.pins):
        return plan_uniform(model, as_slowest_devices(cluster), options, observer, watch)
    check_group_pins(options.pins, cluster)
    from .search import MixedSearch  # loads networkx, which plans for one kind do without

    return MixedSearch(model, cluster, options, watch or unwatched).run()


def check_group_pins(pins: Sequence[Pin], cluster: Cluster) -> None:
    """Raises UsageError for pins that no device group of a mixed cluster can have: a group lies in one
    part, and stages are the search's."""
    most = max(part.devices for part in cluster.parts)
    for pin in pins:
        if pin.strategy.stages > 1:
            raise UsageError(
                f"pin {pin.strategy}: on a mixed cluster a pin is the strategy of a device group, and "
                "stages are the search's: leave out pp, or pin all "
                f"{cluster.devices} devices, as if they were the slowest"
            )
        if pin.strategy.devices > most:
            raise UsageError(
                f"pin {pin.strategy} is for {pin.strategy.devices} devices, the largest part of the "
                f"cluster has {most}: on a mixed cluster a pin is the strategy of a device group, which "
                f"lies in one part"
            )
