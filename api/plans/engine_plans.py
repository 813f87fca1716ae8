"""Plans that leave for other engines, and their files priced as plans.

plan ─layout_of_plan─▶ layout ─engine_text─▶ file        what is lost stands in its comments
file ─read_engine_file─▶ layout ─pins─▶ plan             priced as that engine runs it
plan ─plan_on_engine─▶ plan                              the same decisions as another engine runs them
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import gcd
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ...ir.devices.cluster import Cluster
from ...ir.errors import PlaitError, UsageError
from ...ir.model.model import Model
from ...ir.plan.engines import Engine, engine_named
from ...ir.plan.plan import Plan
from ...ir.plan.schedules.registry import SCHEDULES
from ...ir.text.units import gib, seconds
from ...planner.interop.differences import differences
from ...planner.interop.engine_layout import (
    EngineLayout,
    bounds_of_layout,
    default_schedule,
    layout_of_plan,
    pins_of_layout,
)
from ...planner.question.options import PlanOptions
from ...planner.question.pins import Pin
from ...planner.question.ranking import smallest
from ...planner.question.training import training_of_plan
from ...planner.search.driver import SearchSpace
from ...planner.search.plan import no_plan
from ...planner.search.plan import plan as search
from ...planner.search.price_cache import PriceCache
from ...planner.search.to_plan import assemble
from ..formats.engine_files import FORMATS, engine_text
from ..formats.galvatron_files import galvatron_text

TARGETS = (*FORMATS, "galvatron")
NOTICEABLE = 5e-4  # relative
OPEN = PlanOptions()


def export(plan: Plan, to: str, model: Model | None = None, suffix: str = "") -> str:
    """The text of a configuration file with which an engine starts a plan.

    `to` is one of torchtitan, megatron, deepspeed, accelerate, galvatron; `suffix` the form of the file
    (`.toml`, `.args`, `.yaml`, `.json`; default: the engine's usual). Comments say what could not be
    said there and, where the plan's `model` is given, what that costs. Raises UsageError for a strategy
    that the engine cannot run.
    """
    if to == "galvatron":
        return galvatron_text(plan)
    if to not in FORMATS:
        raise UsageError(f"unknown engine {to!r}; known: {', '.join(TARGETS)}")
    layout = layout_of_plan(plan, to)
    return engine_text(layout, list(export_comments(plan, layout, model)), suffix)


def export_comments(plan: Plan, layout: EngineLayout, model: Model | None) -> Iterator[str]:
    """What the file is, what it loses of the plan, and what that costs."""
    yield (
        f"{plan.model} on {plan.cluster.name}: {layout.strategy}, global batch {plan.global_batch} in "
        f"{plan.micro_batches} micro-batches of {layout.micro_batch} samples"
    )
    if layout.engine == "accelerate":
        yield (
            f"in the training script: per_device_train_batch_size={layout.micro_batch}, "
            f"gradient_accumulation_steps={layout.micro_batches}"
        )
    lost = list(differences(plan, layout))
    for sentence in lost:
        yield f"not said here: {sentence}"
    if lost and model is not None:
        yield _cost(plan, priced(layout, model, plan.cluster, options_of_plan(plan)))
    elif lost:
        yield "what that costs: name the model (--model) to price it"


def _cost(plan: Plan, said: Plan) -> str:
    ours, theirs = plan.prediction.step_seconds, said.prediction.step_seconds
    change = theirs / ours - 1
    what = f"{change:+.1%}" if abs(change) >= NOTICEABLE else "the same"
    fits = "fits" if said.peak_bytes <= said.memory_limit_bytes else "does not fit"
    return (
        f"what that costs: {seconds(theirs)}/step instead of {seconds(ours)} ({what}), "
        f"{gib(said.peak_bytes)} instead of {gib(plan.peak_bytes)} of "
        f"{gib(said.memory_limit_bytes)} ({fits})"
    )


def options_of_plan(plan: Plan) -> PlanOptions:
    """The options that ask for a plan's job again."""
    return PlanOptions(memory_bytes=plan.memory_limit_bytes, **training_of_plan(plan))


def layout_options(layout: EngineLayout, model: Model, options: PlanOptions = OPEN) -> PlanOptions:
    """The options that fix everything that a layout says; others stay open."""
    settings: dict[str, Any] = {
        "engine": layout.engine,
        "pins": pins_of_layout(layout, model),
        "micro_batches": micro_batches(layout, model.batch) or options.micro_batches,
        "bounds": bounds_of_layout(layout, model),
        "model_chunks": layout.model_chunks,
        "schedule": layout.pipeline_schedule,
        "optimizer_on": "host" if layout.optimizer_on_host else "device",
    }
    return replace(options, **settings)


def micro_batches(layout: EngineLayout, global_batch: int) -> int | None:
    """Micro-batches of a step of so many samples; None where the layout leaves them open."""
    if layout.micro_batch is None:
        return None
    return replace(layout, global_batch=global_batch).micro_batches


def priced(
    layout: EngineLayout,
    model: Model,
    cluster: Cluster,
    options: PlanOptions = OPEN,
    prices: PriceCache | None = None,
) -> Plan:
    """A layout as a plan, whether it fits or not. Raises UsageError where the model cannot be split
    so."""
    settings = layout_options(layout, model, options)
    return priced_in(SearchSpace.create(model, cluster, settings, prices))


def priced_in(space: SearchSpace) -> Plan:
    """The best plan of a space of pinned layers: of those that fit, else the smallest."""
    space.run()
    if not space.candidates:
        raise no_plan(space)
    return assemble(space, space.best or smallest(space.candidates))


def neighbours(layout: EngineLayout) -> Iterator[tuple[str, EngineLayout]]:
    """Layouts that differ in one thing, with the change as a user would write it."""
    open_stages = replace(layout, split=())
    micro = layout.micro_batch
    if micro is not None:
        yield f"micro-batches of {2 * micro}", replace(layout, micro_batch=2 * micro)
        if micro % 2 == 0:
            yield f"micro-batches of {micro // 2}", replace(layout, micro_batch=micro // 2)
    for recompute in ("none", "selective", "full"):
        if recompute != layout.recompute or layout.recompute_layers:
            changed = replace(layout, recompute=recompute, recompute_layers=0)
            yield f"recompute {recompute}", changed
    for stage in range(4):
        if stage != layout.zero_stage and layout.data > 1:
            shards = layout.data if stage and not layout.zero_stage else layout.shards
            yield (
                f"zero stage {stage}",
                replace(
                    layout,
                    zero_stage=stage,
                    shards=shards if stage else 1,
                    replicas=layout.data // (shards if stage else 1),
                ),
            )
    if layout.tensor > 1:
        flag = not layout.sequence_parallel
        yield (
            f"sequence parallelism {'on' if flag else 'off'}",
            replace(layout, sequence_parallel=flag),
        )
    for axis in ("tensor", "pipeline", "context"):
        yield from _moved(open_stages, axis)
    if layout.pipeline > 1:
        yield from _schedules(open_stages)


def _schedules(layout: EngineLayout) -> Iterator[tuple[str, EngineLayout]]:
    """Other numbers of model chunks, and the engine's other schedules."""
    for chunks in (1, 2, 4):
        if layout.schedule is not None or chunks != layout.model_chunks:
            changed = replace(layout, model_chunks=chunks, schedule=None)
            yield f"{chunks} model chunk{'s' * (chunks > 1)} per stage", changed
    for name in engine_named(layout.engine).schedules:
        chunks = SCHEDULES[name].chunks
        if chunks and name not in (default_schedule(chunks), layout.schedule):
            yield f"schedule {name}", replace(layout, model_chunks=chunks, schedule=name)


def _moved(layout: EngineLayout, axis: str) -> Iterator[tuple[str, EngineLayout]]:
    """Twice and half the ranks on an axis, taken from or given to the data ranks."""
    size, side = getattr(layout, axis), "shards" if layout.zero_stage else "replicas"
    data = getattr(layout, side)
    if data % 2 == 0:
        yield f"{axis} {2 * size}", replace(layout, **{axis: 2 * size, side: data // 2})
    if size % 2 == 0:
        smaller = replace(layout, **{axis: size // 2, side: data * 2})
        if smaller.pipeline == 1:
            smaller = replace(smaller, model_chunks=1, schedule=None)
        flag = layout.sequence_parallel and smaller.tensor > 1
        yield f"{axis} {size // 2}", replace(smaller, sequence_parallel=flag)


def _with_batch(layout: EngineLayout, global_batch: int) -> EngineLayout:
    """The layout with micro-batches that divide what a data rank sees."""
    if layout.micro_batch is None or global_batch % layout.data:
        return layout
    return replace(layout, micro_batch=gcd(layout.micro_batch, global_batch // layout.data))


def better_neighbours(
    layout: EngineLayout, model: Model, cluster: Cluster, options: PlanOptions, prices: PriceCache
) -> list[tuple[str, Plan]]:
    """Plans that differ in one thing and fit, the fastest first; what the engine cannot is left out."""
    plans: list[tuple[str, Plan]] = []
    for change, other in neighbours(layout):
        changed = _with_batch(other, model.batch)
        if engine_named(layout.engine).refusal(changed.strategy) is None:
            try:
                plan = priced(changed, model, cluster, options, prices)
            except PlaitError:
                continue
            if plan.peak_bytes <= plan.memory_limit_bytes:
                plans.append((change, plan))
    return sorted(plans, key=lambda pair: pair[1].prediction.step_seconds)


def suffix_of(path: str | None) -> str:
    """The form of a file by its name."""
    suffix = Path(path).suffix if path else ""
    return suffix if suffix in (".toml", ".yaml", ".yml", ".json", ".args", ".sh", ".txt") else ""


def plan_on_engine(plan: Plan, model: Model, engine: str) -> Plan:
    """A plan's decisions, priced by the execution model of `engine`, whether they fit or not.

    Raises UsageError naming the first decision that the engine cannot run.
    """
    if engine == plan.engine:
        return plan
    options = replace(
        options_of_plan(plan),
        engine=engine,
        pins=tuple(_pins(plan, engine_named(engine))),
        micro_batches=plan.micro_batches,
        model_chunks=plan.chunks_per_stage,
        schedule=plan.schedule,
        bounds=(*(first for first, _ in plan.model_chunks), len(plan.calls)),
    )
    priced_plan = priced_in(SearchSpace.create(model, plan.cluster, options))
    return replace(priced_plan, source=plan.source)


def job_on_engine(plan: Plan, model: Model, engine: str) -> Plan:
    """The fastest plan of a plan's job for `engine`; raises InfeasibleError where none fits."""
    options: PlanOptions = replace(options_of_plan(plan), engine=engine)
    return replace(search(model, plan.cluster, options), source=plan.source)


def _pins(plan: Plan, engine: Engine) -> Iterator[Pin]:
    """One pin per call that is not of the batch alone; raises UsageError for what cannot be."""
    decided = [(plan.strategy_of(x), x.memory, x) for x in plan.layers if not x.batch_only]
    for strategy, memory, _ in decided:
        engine.check(strategy)
        if not engine.allows_action(memory):
            raise UsageError(f"{engine.name} has no memory action {memory}")
    kinds = [key for key, _ in groupby((strategy, memory) for strategy, memory, _ in decided)]
    if len({s for s, _ in kinds}) > 1 and engine.mixes != "all":
        raise UsageError(f"{engine.name} has one strategy for all layers, not {plan.strategy_text}")
    for strategy, memory, layers in decided:
        for path in dict.fromkeys(plan.calls[layers.first : layers.last]):
            yield Pin(path, strategy, memory)
