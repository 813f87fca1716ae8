"""Another engine's configuration, priced as it runs: fits?, step, what binds, what would be faster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ...cost_model.explain.by_kind import seconds_by_kind
from ...cost_model.explain.step_terms import step_term
from ...ir.devices.cluster import Cluster
from ...ir.lowering.rescale import rescale
from ...ir.plan.plan import Plan
from ...ir.text.units import gib, micro_batches, seconds
from ...planner.interop.engine_layout import EngineLayout
from ...planner.question.options import PlanOptions
from ...planner.search.driver import SearchSpace
from ...planner.search.price_cache import PriceCache
from ..formats.model_source import ModelSource
from .comparison import plan_row
from .engine_plans import better_neighbours, priced_in
from .imported import ImportedPlan
from .plan_request import plan_request

SHOWN_TERMS, SHOWN_CHANGES = 5, 6


class ImportedExplanation(msgspec.Struct, frozen=True):
    """A configuration as a plan, and the plans that differ from it in one thing and fit, the fastest
    first, with what changes; `unpriced` is what the plan leaves out of the file."""

    engine: str
    plan: Plan
    changes: tuple[tuple[str, Plan], ...]
    unpriced: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.plan.peak_bytes <= self.plan.memory_limit_bytes


def explain_imported(
    file: ImportedPlan, source: ModelSource, cluster: Cluster, memory_bytes: int | None = None
) -> ImportedExplanation:
    """Price a configuration of another engine, and its neighbours.

    The batch is the file's; where it leaves that open, every data rank has the source's samples.
    Raises UsageError where the model cannot be split so.
    """
    model = source.load(_global_batch(file), _precision(file))
    if isinstance(file, EngineLayout) and file.global_batch is None:
        model = rescale(model, (source.batch or model.batch) * file.data)
    keywords: dict[str, Any] = {"pin": [file], "memory": memory_bytes}
    request = plan_request(model, cluster.devices, keywords)
    prices = PriceCache()
    plan = priced_in(SearchSpace.create(request.model, cluster, request.options, prices))
    changes: list[tuple[str, Plan]] = []
    if isinstance(file, EngineLayout):
        options = PlanOptions(memory_bytes=memory_bytes, micro_batches=plan.micro_batches)
        changes = better_neighbours(file, request.model, cluster, options, prices)
    unpriced = file.unpriced if isinstance(file, EngineLayout) else ()
    return ImportedExplanation(plan.engine, plan, tuple(changes), unpriced)


def _global_batch(file: ImportedPlan) -> int | None:
    return file.global_batch if isinstance(file, EngineLayout) else file.batch.samples


def _precision(file: ImportedPlan) -> str | None:
    return file.precision if isinstance(file, EngineLayout) else None


def imported_text(explained: ImportedExplanation) -> Iterator[str]:
    """The explanation in a screenful."""
    plan, p = explained.plan, explained.plan.prediction
    over = plan.peak_bytes - plan.memory_limit_bytes
    fits = "fits" if explained.fits else f"does not fit, {gib(over)} over"
    yield (
        f"{plan.model} on {plan.cluster.name} with {explained.engine}: {plan.strategy_text}, global "
        f"batch {plan.global_batch}, {micro_batches(plan.micro_batches)}"
    )
    yield f"  {fits}: {gib(plan.peak_bytes)} of {gib(plan.memory_limit_bytes)}"
    yield (
        f"  {seconds(p.step_seconds)}/step, {100 * p.mfu:.1f} % MFU, bubble {100 * p.bubble:.1f} %"
    )
    yield from (f"  not priced: {setting}" for setting in explained.unpriced)
    yield "  what binds"
    for name, amount in binding_terms(plan):
        yield f"    {name:<40}{seconds(amount):>12}  {amount / p.step_seconds:.0%}"
    gains = [c for c in explained.changes if not explained.fits or _gain(explained, c[1]) > 0]
    yield "  one change that makes it fit" if not explained.fits else "  one change that is faster"
    if not explained.fits:
        yield f"    {memory_change(plan)}"
    elif not gains:
        yield "    none that was tried"
    for change, other in gains[:SHOWN_CHANGES]:
        yield (
            f"    {_gain(explained, other):+.1%} by {change}: "
            f"{seconds(other.prediction.step_seconds)}/step, {gib(other.peak_bytes)}"
        )


def _gain(explained: ImportedExplanation, other: Plan) -> float:
    """Samples per second more, as a fraction."""
    return explained.plan.prediction.step_seconds / other.prediction.step_seconds - 1


def memory_change(plan: Plan) -> str:
    """The memory limit under which a plan fits, as a change."""
    more = plan.peak_bytes / plan.memory_limit_bytes - 1
    return f"--memory-limit {-(-plan.peak_bytes >> 20)}MiB (+{100 * more:.1f} %)"


def binding_terms(plan: Plan) -> list[tuple[str, float]]:
    """The largest terms of a step, in seconds."""
    terms = seconds_by_kind(step_term(plan))
    return sorted(terms.items(), key=lambda item: -item[1])[:SHOWN_TERMS]


def imported_json(explained: ImportedExplanation) -> dict[str, Any]:
    """The explanation as data."""
    plan = explained.plan
    return {
        "engine": explained.engine,
        **plan_row(plan),
        "global_batch": plan.global_batch,
        "bubble": plan.prediction.bubble,
        "mfu": plan.prediction.mfu,
        "binds": dict(binding_terms(plan)),
        "unpriced": list(explained.unpriced),
        "enough_memory": None if explained.fits else memory_change(plan),
        "changes": [
            {"change": change, "gain": _gain(explained, other), **plan_row(other)}
            for change, other in explained.changes
        ],
    }
