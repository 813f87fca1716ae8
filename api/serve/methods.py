"""The methods of a server: plan, explain, what_if, fits, compare. A refusal is an answer as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from ...ir.errors import InfeasibleError, PlaitError, UsageError
from ...ir.files.json_files import located
from ...planner.search.baselines import parse_baselines
from ..plans.comparison import baseline_plans, plan_row
from ..plans.explanation import explain_json
from ..plans.plan_json import plan_json
from .requests import (
    CompareParams,
    ExplainParams,
    FitsParams,
    PlanningJob,
    PlanParams,
    WhatIfParams,
)
from .session import Session, candidate_row, fastest, job_of, smallest_change

Answer = dict[str, Any]


def plan(session: Session, params: PlanParams) -> Answer:
    return plan_json(session.plan(job_of(params)), {})


def explain(session: Session, params: ExplainParams) -> Answer:
    return explain_json(session.plan(job_of(params)), params.where, params.of_memory)


def what_if(session: Session, params: WhatIfParams) -> Answer:
    job = job_of(params)
    space = session.space(job)
    before = fastest(space)
    after = session.changed(job, params.change)
    rows = {"before": candidate_row(space, before), "after": candidate_row(after.space, after.best)}
    gain = rows["after"]["samples_per_s"] / rows["before"]["samples_per_s"] - 1
    return {**rows, "gain": gain, "exact": after.exact}


def fits(session: Session, params: FitsParams) -> Answer:
    job = job_of(params)
    pinned = replace(job, pins=(*job.pins, params.strategy)) if params.strategy else job
    space = session.pinned_space(pinned) if params.strategy else session.space(job)
    try:
        return {**candidate_row(space, fastest(space)), "smallest_change": None}
    except InfeasibleError as error:
        least = min(space.candidates, key=lambda c: c.peak_bytes)
        change = _other_strategy(session, job) if params.strategy else None
        return {**candidate_row(space, least), "smallest_change": change or smallest_change(error)}


def _other_strategy(session: Session, job: PlanningJob) -> Answer | None:
    """The plan of a job without the strategy that was asked for; None where nothing fits."""
    try:
        best = fastest(space := session.space(job))
    except InfeasibleError:
        return None
    return {**candidate_row(space, best), "change": f"strategy {best.strategy_text}"}


def compare(session: Session, params: CompareParams) -> Answer:
    job = job_of(params)
    plan, space = session.plan(job), session.space(job)
    baselines = parse_baselines(params.against, plan.cluster)
    others = baseline_plans(plan, space.pricer.model, baselines, space.prices)
    rows = [{"name": n, "possible": o is not None, **(plan_row(o) if o else {})} for n, o in others]
    return {"plan": plan_row(plan), "baselines": rows}


class Method(NamedTuple):
    """A method by name: the struct of its parameters, and what answers."""

    params: type[PlanningJob]
    answer: Callable[[Session, Any], Answer]


METHODS: dict[str, Method] = {
    "plan": Method(PlanParams, plan),
    "explain": Method(ExplainParams, explain),
    "what_if": Method(WhatIfParams, what_if),
    "fits": Method(FitsParams, fits),
    "compare": Method(CompareParams, compare),
}


def schema(name: str) -> dict[str, Any]:
    """The JSON schema of a method's parameters."""
    (root,), components = msgspec.json.schema_components(
        [METHODS[name].params], ref_template="#/$defs/{name}"
    )
    own = components.pop(METHODS[name].params.__name__, root)
    return {**own, "$defs": components} if components else own


def call(session: Session, name: object, params: object) -> Answer:
    """The answer of a method; raises PlaitError."""
    if not isinstance(name, str) or name not in METHODS:
        raise UsageError(f"unknown method {name!r:.60}; known: {', '.join(METHODS)}")
    try:
        decoded = msgspec.convert(params, METHODS[name].params)
    except msgspec.ValidationError as error:
        raise UsageError(located(str(error))) from None
    return METHODS[name].answer(session, decoded)


def refusal(error: PlaitError) -> dict[str, Any]:
    """A refusal as data, with the smallest change that fits."""
    return {
        "kind": type(error).__name__,
        "message": str(error),
        "exit_code": error.exit_code,
        "smallest_change": smallest_change(error),
    }
