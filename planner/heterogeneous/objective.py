"""Plans for another objective than time: the cheapest, or the fastest that keeps limits.

All devices of a plan are paid for as long as its step takes, so on given devices the fastest plan is
the cheapest; what is left to choose is the devices. The search plans for the whole cluster and for
smaller ones, each part halved again and again or left out, and takes the best that keeps the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from msgspec.structs import replace

from ...ir.devices.cluster import Cluster, PartLink
from ...ir.devices.mixed import mixed_cluster, sub_cluster
from ...ir.errors import InfeasibleError, LimitError, PlaitError, UsageError
from ...ir.plan.plan import Plan, Prediction
from ..question.deadline import Deadline
from ..question.options import PlanOptions

MOST_CLUSTERS = 64
Search = Callable[[Cluster, PlanOptions], Plan]  # the fastest plan for a cluster


def plan_for_objective(cluster: Cluster, options: PlanOptions, search: Search) -> Plan:
    """The best plan for the objective that keeps the limits, by plans that `search` finds.

    Raises UsageError where the cluster does not say what its devices cost, InfeasibleError where no
    plan keeps the limits, and the error of `search` where there is no plan at all.
    """
    _require_rates(cluster, options)
    deadline, plans, complete = Deadline(options.time_limit_seconds), list[Plan](), True
    failure: PlaitError | None = None
    for smaller in smaller_clusters(cluster):
        if deadline.passed():
            complete = False
            break
        try:
            plans.append(search(smaller, options))
        except (InfeasibleError, LimitError, UsageError) as error:
            failure = failure or error
    if not plans:
        raise failure or LimitError("time was up before any plan was found; give it more time")
    within = [plan for plan in plans if keeps_limits(plan.prediction, options)]
    if not within:
        raise InfeasibleError(_nothing_within(plans, options))
    best = min(within, key=lambda plan: _order(plan.prediction, options))
    # no bound says what a plan for other devices could cost
    return replace(best, status="feasible", complete=best.complete and complete)


def keeps_limits(prediction: Prediction, options: PlanOptions) -> bool:
    """Whether a step costs no more than the budget and trains no fewer samples a second than asked."""
    dollars = prediction.dollars_per_step
    affordable = options.budget is None or (dollars is not None and dollars <= options.budget)
    return affordable and prediction.samples_per_second >= (options.at_least or 0.0)


def smaller_clusters(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, then smaller ones: every part halved again and again, or left out."""
    parts = cluster.parts or (cluster,)
    sizes = [[*_halves(part.devices), *([0] if cluster.parts else [])] for part in parts]
    choices = sorted(product(*sizes), key=lambda counts: -sum(counts))
    for counts in [c for c in choices if any(c)][:MOST_CLUSTERS]:
        yield _of_sizes(cluster, counts)


def _halves(devices: int) -> Iterator[int]:
    while True:
        yield devices
        if devices % 2:
            return
        devices //= 2


def _of_sizes(cluster: Cluster, counts: tuple[int, ...]) -> Cluster:
    """The first devices of every part, as many as `counts` says; parts with none are left out."""
    parts = cluster.parts or (cluster,)
    if counts == tuple(part.devices for part in parts):
        return cluster
    used = [number for number, count in enumerate(counts) if count]
    smaller = [sub_cluster(parts[number], counts[number]) for number in used]
    if len(smaller) == 1:
        return smaller[0]
    links = [
        PartLink(used.index(x.one), used.index(x.other), x.link)
        for x in cluster.part_links
        if x.one in used and x.other in used
    ]
    return mixed_cluster(cluster.name, smaller, cluster.levels[0], links)


def _require_rates(cluster: Cluster, options: PlanOptions) -> None:
    """Raise UsageError where a rate that the question needs is not said."""
    dollars = options.objective == "dollars" or options.budget is not None
    needs = (("dollars_per_hour", dollars), ("watts", options.objective == "energy"))
    for part in cluster.parts or (cluster,):
        for rate, needed in needs:
            if needed and getattr(part.rates, rate) is None:
                raise UsageError(
                    f"{part.name} says no {rate}: put it under [rates] in the cluster's file, as in "
                    f"rates = {{ {rate} = 2.5 }}"
                )


def _order(prediction: Prediction, options: PlanOptions) -> tuple[float, float]:
    """What the objective wants least of, then seconds."""
    amounts = {
        "time": prediction.step_seconds,
        "dollars": prediction.dollars_per_step,
        "energy": prediction.joules_per_step,
    }
    return amounts[options.objective] or 0.0, prediction.step_seconds


def _nothing_within(plans: list[Plan], options: PlanOptions) -> str:
    """What the limits miss, by the plans that come nearest."""
    fastest = max(plan.prediction.samples_per_second for plan in plans)
    text = f"no plan keeps the limits: the fastest trains {fastest:.4g} samples/s"
    if options.at_least is not None:
        text += f" ({options.at_least:g} were asked for)"
    if options.budget is not None:
        enough = [p for p in plans if p.prediction.samples_per_second >= (options.at_least or 0.0)]
        cheapest = min((p.prediction.dollars_per_step or 0.0 for p in enough), default=None)
        if cheapest is not None:
            text += (
                f", the cheapest costs {cheapest:.4g} dollars a step (budget {options.budget:g})"
            )
    return text
