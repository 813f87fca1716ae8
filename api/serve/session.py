"""What a server keeps warm: traced models, prices of layers, searches that are done.

    what_if memory          the job's candidates under another limit; a search where none fits
    what_if global_batch    the job's strategies on the batch, prices of equal micro-batches as they are
    what_if pin             of all layers a search of the pinned; of some the job's strategies with them
    what_if cluster         the job's strategies on more or fewer of its nodes; else a search

Answers depend on the question alone, never on what was asked before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from msgspec.structs import replace

from ...cost_model.hardware import load_cluster
from ...ir.devices.cluster import Cluster
from ...ir.errors import InfeasibleError, PlaitError, UsageError
from ...ir.model.model import Model
from ...ir.plan.memory_action import MemoryAction
from ...ir.plan.plan import Plan
from ...ir.plan.strategy import ROLES, SEQUENCE_FLAG, Strategy
from ...ir.text.units import gib, parse_memory
from ...planner.pricing.candidate_pricer import CandidatePricer
from ...planner.pricing.function_prices import FunctionPrices
from ...planner.question.candidate import Assignment, Candidate, Decision, RunPoint
from ...planner.question.pins import Pin, parse_pin, pin_per_call
from ...planner.search import infeasible
from ...planner.search.driver import SearchSpace
from ...planner.search.infeasible import more_memory, percent_more
from ...planner.search.plan import chosen_plan, no_plan
from ..formats.model_source import ModelSource
from ..plans.plan_request import plan_request
from .requests import Change, PlanningJob

MOST_MODELS, MOST_SPACES = 8, 32  # that are kept; the oldest go
MOST_STRATEGIES = 16  # of a job that are tried on another batch or number of nodes
MOST_PINNED = 6  # candidates of a job that are tried with some layers pinned


class ChangedJob(NamedTuple):
    """A job after a change: its space, the best candidate, and whether a search of its own found it."""

    space: SearchSpace
    best: Candidate
    exact: bool


class Session:
    """The warm state of one server."""

    def __init__(self) -> None:
        self.models: dict[object, Model] = {}
        self.spaces: dict[PlanningJob, SearchSpace] = {}
        self.plans: dict[PlanningJob, Plan] = {}

    def space(self, job: PlanningJob) -> SearchSpace:
        """The searched space of a job. Raises PlaitError."""
        if job not in self.spaces:
            cluster = load_cluster(job.cluster)
            request = plan_request(self.model(job, cluster), cluster.devices, job.keywords())
            space = SearchSpace.create(request.model, cluster, request.options)
            space.run()
            _keep(self.spaces, job, space, MOST_SPACES)
        return self.spaces[job]

    def model(self, job: PlanningJob, cluster: Cluster) -> Model:
        """The traced model, with at least one sample for every device."""
        key = (job.source, job.batch, job.seq, job.global_batch, job.precision, cluster.devices)
        if key not in self.models:
            source = ModelSource(job.source, job.batch, job.seq)
            model = source.load(job.global_batch, job.precision)
            if job.global_batch is None and model.batch < cluster.devices:
                batch = -(-cluster.devices // model.batch) * model.batch
                model = source.load(batch, job.precision)
            _keep(self.models, key, model, MOST_MODELS)
        return self.models[key]

    def plan(self, job: PlanningJob) -> Plan:
        """The plan of a job; raises InfeasibleError where nothing fits."""
        if job not in self.plans:
            space = self.space(job)
            source = str(ModelSource(job.source, job.batch, job.seq))
            plan = replace(chosen_plan(space, fastest(space)), source=source)
            _keep(self.plans, job, plan, MOST_SPACES)
        return self.plans[job]

    def changed(self, job: PlanningJob, change: Change) -> ChangedJob:
        """The best candidate of a job after a change; raises PlaitError where nothing fits."""
        space, exact = self.space(job), True
        if change.cluster is not None:
            nodes = None if job.pins else other_nodes(space, load_cluster(change.cluster))
            exact = nodes is None
            space = nodes or self.space(replace(job, cluster=change.cluster))
        if change.global_batch is not None:
            space, exact = other_batch(space, change.global_batch), False
        if change.memory is not None:
            space, exact = other_memory(space, parse_memory(change.memory)), False
        if change.pin is not None:
            pinned = other_pin(space, parse_pin(change.pin))
            space = pinned or searched_pin(space, parse_pin(change.pin))
            exact = exact and pinned is None
        return ChangedJob(space, fastest(space), exact)


def _keep(cache: dict[Any, Any], key: object, value: object, most: int) -> None:
    """Add a value; the oldest go where there are too many."""
    while len(cache) >= most:
        cache.pop(next(iter(cache)))
    cache[key] = value


def fastest(space: SearchSpace) -> Candidate:
    """The fastest candidate that fits; raises the error that says why there is none, with the memory
    that would do."""
    fitting = space.fitting()
    if fitting:
        seconds = min(c.step_seconds for c in fitting)
        return min((c for c in fitting if c.step_seconds == seconds), key=space.sort_key)
    if not space.candidates:
        raise no_plan(space)
    least = min(space.candidates, key=lambda c: (c.peak_bytes, c.step_seconds))
    needed, limit = least.peak_bytes, space.memory_limit_bytes
    enough, more = more_memory(least), percent_more(least, limit)
    raise InfeasibleError(
        f"infeasible: the smallest plan found ({least.strategy_text}, {least.micro_batches} "
        f"micro-batches, {least.memory_text}) needs {gib(needed)}, has {gib(limit)}: "
        f"{gib(needed - limit)} short; {enough.change} ({more}) is enough",
        {"peak": needed, "budget": limit, "fixes": [enough.row()]},
    )


def other_memory(space: SearchSpace, memory_bytes: int | None) -> SearchSpace:
    """The space under another memory limit, of which the candidates that are priced fit or are searched
    again, on the prices of layers that there are."""
    other = space.with_options(memory_bytes=memory_bytes)
    other.candidates = list(space.candidates)
    if not other.fitting():
        other.run()
    return other


def searched_pin(space: SearchSpace, pin: Pin) -> SearchSpace:
    """The space with one more pin, searched on the prices of layers that there are."""
    other = space.with_options(pins=(*space.options.pins, pin))
    other.run()
    return other


def other_pin(space: SearchSpace, pin: Pin) -> SearchSpace | None:
    """The fastest candidates of a space with some layers pinned, the others as they are; None where
    nothing fits so, or the pin leaves no layer open."""
    pricer = space.pricer
    pinned = pin_per_call(pricer.model, (pin,))
    if all(pinned[i] or i in pricer.batch_only for i in range(len(pinned))):
        return None
    other = space.with_options(pins=(*space.options.pins, pin))
    stages = (c for c in ranked(space) if c.strategies[0].stages == pin.strategy.stages)
    chosen = islice(stages, MOST_PINNED)
    priced = (pricer.mixed(_with_pin(c, pinned), c.bounds) for c in chosen)
    other.candidates = [c for c in priced if c is not None]
    return other if other.fitting() else None


def _with_pin(candidate: Candidate, pinned: Sequence[Pin | None]) -> Assignment:
    """A candidate's assignment with the pinned calls changed."""
    decided: list[Decision] = []
    for call, pin in enumerate(pinned):
        of_call = candidate.assignment.at(call)
        strategy = pin.strategy if pin else of_call.strategy
        memory = (pin and pin.memory) or of_call.memory
        last = decided[-1] if decided else None
        if last is not None and (last.strategy, last.memory) == (strategy, memory):
            decided[-1] = replace(last, last=call + 1)
        else:
            decided.append(Decision(call, call + 1, strategy, memory))
    return replace(candidate.assignment, decisions=tuple(decided))


def other_batch(space: SearchSpace, global_batch: int) -> SearchSpace:
    """The strategies of a space, fastest first, on another global batch with micro-batches of the same
    sizes, whose layers are priced already."""
    if global_batch < 1:
        raise UsageError(f"a global batch of {global_batch} has no sample")
    return _repriced(space, space.pricer.function_prices, global_batch)


def other_nodes(space: SearchSpace, cluster: Cluster) -> SearchSpace | None:
    """The strategies of a space on more or fewer nodes of its cluster; None for another cluster, or
    where none of them can be."""
    function_prices = space.pricer.function_prices.on(cluster)
    if function_prices is None:
        return None
    other = _repriced(space, function_prices, space.pricer.global_batch)
    return other if other.fitting() else None


def _repriced(
    space: SearchSpace, function_prices: FunctionPrices, global_batch: int
) -> SearchSpace:
    """The fastest strategies of a space, their batch axes as wide as the cluster, priced anew from
    prices of layers."""
    old, devices = space.pricer, function_prices.cluster.devices
    compressor = old.stage_pricer.compressor
    pricer = CandidatePricer(function_prices, global_batch, old.optimizer, compressor)
    points = (
        point
        for candidate in ranked(space)
        for decision in candidate.decisions
        for strategy in _for_devices(decision.strategy, devices)
        for point in _points(candidate, strategy, decision.memory, global_batch)
    )
    other = SearchSpace(pricer, space.options, space.memory_limit_bytes)
    chosen = islice(_distinct(points), MOST_STRATEGIES)
    other.candidates = [c for c in map(pricer.candidate, chosen) if c is not None]
    return other


def ranked(space: SearchSpace) -> list[Candidate]:
    """The candidates of a space that fit, then others, the fastest first."""
    limit = space.memory_limit_bytes
    return sorted(space.candidates, key=lambda c: (c.peak_bytes > limit, c.step_seconds))


def _distinct(points: Iterable[RunPoint]) -> Iterator[RunPoint]:
    """Every point once, in order."""
    seen: set[RunPoint] = set()
    for point in points:
        if point not in seen:
            seen.add(point)
            yield point


def _for_devices(strategy: Strategy, devices: int) -> Iterator[Strategy]:
    """A strategy with its outermost batch axis as wide as the devices allow, if they do."""
    axes, place = list(strategy.axes), 0
    while place < len(axes) and not (ROLES[axes[place][0]].batch and axes[place][1] > 1):
        place += 1
    if strategy.devices == devices:
        yield strategy
    elif place < len(axes):
        role, size = axes[place]
        wider, rest = divmod(size * devices, strategy.devices)
        axes[place] = role, wider
        if not rest and wider:
            shown = (a for a in axes if a[1] > 1 or a == (SEQUENCE_FLAG, 1))
            yield replace(strategy, axes=tuple(shown))


def _points(
    candidate: Candidate, strategy: Strategy, memory: MemoryAction, global_batch: int
) -> list[RunPoint]:
    """The point of a strategy with the candidate's samples per device, as far as the batch has them."""
    assignment = candidate.assignment
    ranks = candidate.strategies[0].batch_degree() * assignment.micro_batches
    samples = min(assignment.global_batch // ranks, global_batch // strategy.batch_degree())
    count, rest = divmod(global_batch, strategy.batch_degree() * max(samples, 1))
    if rest or not count:
        return []
    return [
        RunPoint(
            strategy, global_batch, count, memory, assignment.model_chunks, assignment.schedule
        )
    ]


def smallest_change(error: PlaitError) -> dict[str, Any] | None:
    """Of a refusal, the smallest change that was found to fit; None where a refusal has none."""
    report: dict[str, Any] = getattr(error, "report", None) or {}
    tried: list[dict[str, Any]] = report.get("fixes", [])
    return next((change for change in tried if change["fits"]), None)


def candidate_row(space: SearchSpace, candidate: Candidate) -> dict[str, Any]:
    """A candidate in a row of figures, under the memory limit of its space."""
    fits = candidate.peak_bytes <= space.memory_limit_bytes
    return {**infeasible.candidate_row(candidate), "fits": fits}


def job_of(params: Any) -> PlanningJob:
    """The job in the parameters of a request."""
    fields = {name: getattr(params, name) for name in PlanningJob.__struct_fields__}
    return replace(PlanningJob(params.source, params.cluster), **fields)
