"""What a server keeps warm: traced models, prices of layers, searches that are done.

`planner/search/changes` says how each change of a job is answered from them. Answers depend on the
question alone, never on what was asked before.
"""

from __future__ import annotations

import gc
from typing import Any, NamedTuple

from msgspec.structs import replace

from ...cost_model.hardware import load_cluster
from ...ir.devices.cluster import Cluster
from ...ir.errors import InfeasibleError, PlaitError, UsageError
from ...ir.model.model import Model
from ...ir.plan.plan import Plan
from ...ir.text.units import gib, parse_memory
from ...planner.question.candidate import Candidate
from ...planner.question.pins import parse_pin
from ...planner.question.ranking import smallest
from ...planner.search import infeasible
from ...planner.search.changes import (
    other_batch,
    other_cluster,
    other_memory,
    other_model,
    other_pin,
    price_pinned,
    searched_pin,
)
from ...planner.search.driver import SearchSpace
from ...planner.search.infeasible import more_memory, percent_more
from ...planner.search.plan import chosen_plan, no_plan, searched, simplest
from ...planner.search.price_cache import PriceCache, keep_recent
from ..formats.model_source import ModelSource
from ..plans.plan_request import plan_request
from .requests import Change, PlanningJob

MOST_MODELS, MOST_SPACES = 8, 32  # that are kept; the oldest go


class ChangedJob(NamedTuple):
    """A job after a change: its space, the best candidate, and whether a search of its own found it."""

    space: SearchSpace
    best: Candidate
    exact: bool


class Session:
    """The warm state of one server."""

    def __init__(self) -> None:
        self.models: dict[object, Model] = {}
        self.prices = PriceCache()
        self.spaces: dict[PlanningJob, SearchSpace] = {}
        self.pinned: dict[PlanningJob, SearchSpace] = {}
        self.plans: dict[PlanningJob, Plan] = {}

    def opened(self, job: PlanningJob) -> SearchSpace:
        """The space of a job, not searched. Raises PlaitError."""
        cluster = load_cluster(job.cluster)
        request = plan_request(self.model(job, cluster), cluster.devices, job.keywords())
        return SearchSpace.create(request.model, cluster, request.options, self.prices)

    def space(self, job: PlanningJob) -> SearchSpace:
        """The searched space of a job. Raises PlaitError."""
        if job not in self.spaces:
            space = searched(self.opened(job))
            keep_recent(self.spaces, job, space, MOST_SPACES)
            settle_garbage()
        return self.spaces[job]

    def pinned_space(self, job: PlanningJob) -> SearchSpace:
        """The space of a job with pins, searched where no usual way to run them fits."""
        if job not in self.pinned:
            space = self.opened(job)
            if not price_pinned(space):
                space = self.space(job)
            keep_recent(self.pinned, job, space, MOST_SPACES)
        return self.pinned[job]

    def model(self, job: PlanningJob, cluster: Cluster) -> Model:
        """The traced model, with at least one sample for every device."""
        key = (job.source, job.batch, job.seq, job.global_batch, job.precision, cluster.devices)
        if key not in self.models:
            source = ModelSource(job.source, job.batch, job.seq)
            model = source.load(job.global_batch, job.precision)
            if job.global_batch is None and model.batch < cluster.devices:
                batch = -(-cluster.devices // model.batch) * model.batch
                model = source.load(batch, job.precision)
            keep_recent(self.models, key, model, MOST_MODELS)
        return self.models[key]

    def plan(self, job: PlanningJob) -> Plan:
        """The plan of a job; raises InfeasibleError where nothing fits."""
        if job not in self.plans:
            space = self.space(job)
            source = str(ModelSource(job.source, job.batch, job.seq))
            plan = replace(chosen_plan(space, fastest(space)), source=source)
            keep_recent(self.plans, job, plan, MOST_SPACES)
        return self.plans[job]

    def changed(self, job: PlanningJob, change: Change) -> ChangedJob:
        """The best candidate of a job after a change; raises PlaitError where nothing fits."""
        space, exact = self.space(job), True
        if change.seq is not None:
            job = other_length(job, change.seq)
            resized = None if job.pins else other_model(space, self.opened(job))
            space, exact = resized or self.space(job), resized is None
        if change.cluster is not None:
            moved = None if job.pins else other_cluster(space, load_cluster(change.cluster))
            exact = exact and moved is None
            space = moved or self.space(replace(job, cluster=change.cluster))
        if change.global_batch is not None:
            space, exact = other_batch(space, change.global_batch), False
        if change.memory is not None:
            space, exact = other_memory(space, parse_memory(change.memory)), False
        if change.pin is not None:
            pinned = other_pin(space, parse_pin(change.pin))
            space = pinned or searched_pin(space, parse_pin(change.pin))
            exact = exact and pinned is None
        return ChangedJob(space, fastest(space), exact)


def other_length(job: PlanningJob, seq: int) -> PlanningJob:
    """The job with samples of `seq` tokens. Raises UsageError for a source that makes its own."""
    if not job.source.startswith("hf:"):
        raise UsageError(f"{job.source:.200} has samples of its own length: seq is for hf: sources")
    return replace(job, seq=seq)


def settle_garbage() -> None:
    """Have the collector pass over what is kept: walking it would slow later answers."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def fastest(space: SearchSpace) -> Candidate:
    """The candidate that a plan takes: of those that nothing tells from the fastest the simplest; raises
    the error that says why there is none, with the memory that would do."""
    if space.best is not None:
        return simplest(space)
    if not space.candidates:
        raise no_plan(space)
    least = smallest(space.candidates)
    needed, limit = least.peak_bytes, space.memory_limit_bytes
    enough, more = more_memory(least), percent_more(least, limit)
    raise InfeasibleError(
        f"infeasible: the smallest plan found ({least.strategy_text}, {least.micro_batches} "
        f"micro-batches, {least.memory_text}) needs {gib(needed)}, has {gib(limit)}: "
        f"{gib(needed - limit)} short; {enough.change} ({more}) is enough",
        {"peak": needed, "budget": limit, "fixes": [enough.row()]},
    )


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
