"""What a server keeps warm: traced models, prices of layers, searches that are done.

    what_if memory          the job's candidates under another limit; a search where none fits
    what_if pin             the search space of the job with one more pin
    what_if global_batch    the job's strategies on the batch, prices of equal micro-batches as they are
    what_if cluster         a search of its own

Answers depend on the question alone, never on what was asked before.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ...cost_model.hardware import load_cluster
from ...ir.devices.cluster import Cluster
from ...ir.errors import InfeasibleError, PlaitError, UsageError
from ...ir.model.model import Model
from ...ir.plan.plan import Plan
from ...ir.plan.strategy import parse_strategy
from ...ir.text.units import gib, parse_memory
from ...planner.pricing.candidate_pricer import CandidatePricer
from ...planner.question.candidate import Candidate, RunPoint
from ...planner.question.pins import Pin
from ...planner.search.driver import SearchSpace
from ...planner.search.plan import no_plan
from ...planner.search.to_plan import assemble
from ..formats.model_source import ModelSource
from ..plans.plan_request import plan_request
from .requests import Change, PlanningJob

MOST_MODELS, MOST_SPACES = 8, 32  # that are kept; the oldest go
MOST_STRATEGIES = 24  # of a job that are tried on another batch


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
            plan = replace(assemble(space, fastest(space)), source=source)
            _keep(self.plans, job, plan, MOST_SPACES)
        return self.plans[job]

    def changed(self, job: PlanningJob, change: Change) -> Candidate:
        """The best candidate of a job after a change; raises PlaitError where nothing fits."""
        if change.cluster is not None:
            return fastest(self.space(change.apply(job)))
        space = self.space(job)
        if change.global_batch is not None:
            space = other_batch(space, change.global_batch)
        if change.memory is not None or change.pin is not None:
            space = other_limits(space, change.memory, change.pin)
        return fastest(space)


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
        return min(fitting, key=space.sort_key)
    if not space.candidates:
        raise no_plan(space)
    least = min(space.candidates, key=lambda c: (c.peak_bytes, c.step_seconds))
    needed, limit = least.peak_bytes, space.memory_limit_bytes
    change = {**candidate_row(space, least), "change": f"--memory {-(-needed >> 20)}MiB"}
    raise InfeasibleError(
        f"infeasible: the smallest plan found ({least.strategy_text}, {least.micro_batches} "
        f"micro-batches, {least.memory_text}) needs {gib(needed)}, has {gib(limit)}: "
        f"{gib(needed - limit)} short",
        {"peak": needed, "budget": limit, "fixes": [change | {"fits": True}]},
    )


def other_limits(space: SearchSpace, memory: str | None, pin: str | None) -> SearchSpace:
    """The space under another memory limit, of which the candidates that are priced fit or are searched
    again, or with layers pinned; on the prices of layers that there are."""
    changes: dict[str, Any] = {}
    if memory is not None:
        changes["memory_bytes"] = parse_memory(memory)
    if pin is not None:
        glob, _, strategy = pin.rpartition(":")
        changes["pins"] = (*space.options.pins, Pin(glob or "*", parse_strategy(strategy)))
    other = space.with_options(**changes)
    other.candidates = list(space.candidates) if pin is None else []
    if not other.fitting():
        other.run()
    return other


def other_batch(space: SearchSpace, global_batch: int) -> SearchSpace:
    """The strategies of a space, fastest first, on another global batch with micro-batches of the same
    sizes, whose layers are priced already."""
    if global_batch < 1:
        raise UsageError(f"a global batch of {global_batch} has no sample")
    pricer = space.pricer
    other = CandidatePricer(
        pricer.function_prices, global_batch, pricer.optimizer, pricer.stage_pricer.compressor
    )
    batch_space = SearchSpace(other, space.options, space.memory_limit_bytes)
    ranked = sorted(space.candidates, key=space.sort_key)
    points = dict.fromkeys(
        point
        for candidate in ranked
        for decision in candidate.decisions
        for point in _points(candidate, decision.strategy, decision.memory, global_batch)
    )
    chosen = list(points)[:MOST_STRATEGIES]
    batch_space.candidates = [c for c in map(other.candidate, chosen) if c is not None]
    return batch_space


def _points(candidate: Candidate, strategy: Any, memory: Any, global_batch: int) -> list[RunPoint]:
    """The point of a strategy with the candidate's samples per device."""
    assignment = candidate.assignment
    samples = assignment.global_batch // (strategy.batch_degree() * assignment.micro_batches)
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
    """A candidate in a row of figures."""
    return {
        "word": candidate.strategy_text,
        "micro_batches": candidate.micro_batches,
        "memory": candidate.memory_text,
        "step_time_s": candidate.step_seconds,
        "samples_per_s": candidate.assignment.global_batch / candidate.step_seconds,
        "peak": candidate.peak_bytes,
        "fits": candidate.peak_bytes <= space.memory_limit_bytes,
    }


def job_of(params: Any) -> PlanningJob:
    """The job in the parameters of a request."""
    fields = {name: getattr(params, name) for name in PlanningJob.__struct_fields__}
    return replace(PlanningJob(params.source, params.cluster), **fields)
