"""What every family of strategies would cost: the fastest candidate of each, term by term."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

from msgspec.structs import replace

from ...cost_model.explain.by_kind import fullest_stage_bytes, seconds_by_kind
from ...cost_model.explain.step_terms import step_term
from ...ir.plan.family import family
from ...ir.plan.plan import Alternative, Plan
from ...ir.plan.strategy import SEARCHED_ROLES, Strategy
from ..question.candidate import Candidate
from ..question.ranking import by_seconds
from .driver import SearchSpace
from .to_plan import alternative, assemble

MOST_FAMILIES = 8
COMPARED = ("DDP", "FSDP")
ONE_AXIS = ("dp", "zero3")  # DDP and FSDP are compared with, also where the search skipped them


def with_families(space: SearchSpace, plan: Plan, best: Candidate) -> Plan:
    """The plan, whose alternatives have the fastest of every family with its terms.

    Families that fit come first, then the fastest; none is added once time is up.
    """
    if space.deadline.passed() or space.cluster.parts:
        return plan
    candidates = [*(c for c in space.candidates if c is not best), *_baselines(space)]
    rows = {id(c): _with_terms(space, c) for c in _fastest_of_families(space, candidates)}
    terms = {_identity(row): row for row in rows.values()}
    listed = [terms.pop(_identity(a), a) for a in plan.alternatives]
    return replace(plan, alternatives=(*listed, *terms.values()))


def _fastest_of_families(
    space: SearchSpace, candidates: Iterable[Candidate]
) -> Iterator[Candidate]:
    """The first of every family of some of them, and those that are compared with."""
    name_of = cache(family)
    known: tuple[dict[str, Candidate], dict[str, Candidate]] = {}, {}
    others, those_that_fit = known

    def wanted(candidate: Candidate) -> bool:
        name = name_of(candidate.strategies)
        more = len(those_that_fit) < MOST_FAMILIES or name in COMPARED
        return more and name not in those_that_fit

    for candidate, fits in by_seconds(candidates, space.memory_limit_bytes, wanted):
        known[fits].setdefault(name_of(candidate.strategies), candidate)
    fastest = those_that_fit | {n: c for n, c in others.items() if n not in those_that_fit}
    chosen = [*list(fastest)[:MOST_FAMILIES], *COMPARED]
    yield from (fastest[name] for name in dict.fromkeys(chosen) if name in fastest)


def _identity(row: Alternative) -> Alternative:
    return replace(row, seconds=(), memory_terms=())


def _baselines(space: SearchSpace) -> Iterator[Candidate]:
    """Candidates of one axis over all devices that the search has not priced."""
    priced = {strategy for c in space.candidates for strategy in c.strategies}
    free = space.with_options(pins=(), micro_batches=None, roles=SEARCHED_ROLES)
    for role in ONE_AXIS:
        strategy = Strategy(((role, space.cluster.devices),))
        allowed = space.cluster.devices > 1 and space.refusal(strategy) is None
        if allowed and strategy not in priced:
            yield from free.uniform_candidates(strategy)


def _with_terms(space: SearchSpace, candidate: Candidate) -> Alternative:
    row = alternative(candidate, space.memory_limit_bytes)
    return with_terms(row, assemble(space, candidate))


def with_terms(row: Alternative, plan: Plan) -> Alternative:
    """The row of a plan, with its seconds and bytes by kind."""
    terms = fullest_stage_bytes(plan)
    return replace(
        row,
        seconds=tuple(seconds_by_kind(step_term(plan)).items()),
        memory_terms=tuple((name, int(amount)) for name, amount in terms.items()),
    )
