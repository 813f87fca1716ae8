"""Turns device groups with their strategies and micro-batches into a plan."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from ...cost_model.pipeline.group_pipeline import groups_step
from ...ir.files.json_files import digest
from ...ir.lowering.cast import precision_of
from ...ir.model.mesh import Axis, Mesh
from ...ir.plan.groups.schedule import group_in_flight, group_rows, tiles_of
from ...ir.plan.plan import Layers, Plan, Prediction, Stage
from ...ir.plan.sharding import Sharding
from ...ir.plan.strategy import Strategy
from ..layers.priced_layers import append_run, priced_layers
from ..question.candidate import RunPoint
from ..question.options import PlanOptions
from .group_prices import GroupChoice, GroupPrices


def assemble_groups(
    prices: GroupPrices, choices: Sequence[GroupChoice], options: PlanOptions, samples: int
) -> Plan:
    """The plan of these groups on micro-batches of `samples`, with its simulated step."""
    # how many micro-batches are in flight follows from the schedule, which needs the stages
    model, count = prices.model, prices.model.batch // samples
    shardings = _shardings(prices, choices, count)
    draft = Plan(
        model=model.name,
        model_digest=model.fingerprint(),
        cluster=prices.cluster,
        mesh=Mesh((Axis("dp", sum(c.group.devices for c in choices)),)),
        global_batch=model.batch,
        micro_batches=count,
        schedule="1f1b",
        precision=options.precision or precision_of(model.parameters),
        optimizer=prices.optimizer,
        memory_limit_bytes=_most_memory(prices),
        stages=tuple(Stage((c.calls,)) for c in choices),
        layers=tuple(
            layers
            for n, c in enumerate(choices)
            for layers in _layers(prices, c, n, shardings, samples)
        ),
        shardings=tuple(shardings.values()),
        prediction=Prediction(),
        status="feasible",
        gap=1.0,
        calls=tuple(call.path for call in model.calls),
        cluster_digest=digest(prices.cluster),
        seed=options.seed,
        engine=options.engine,
        gradient_precision=options.gradient_precision,
        groups=tuple(c.group for c in choices),
    )
    return predicted(prices, with_memory(prices, draft, choices, samples))


def with_memory(
    prices: GroupPrices, plan: Plan, choices: Sequence[GroupChoice], samples: int
) -> Plan:
    """The plan with what its stages need for the micro-batches that its schedule keeps in flight."""
    rows = group_rows(tiles_of(plan))
    stages = tuple(
        prices.stage_of(c, samples, group_in_flight(row))
        for c, row in zip(choices, rows, strict=True)
    )
    return replace(plan, stages=stages)


def predicted(prices: GroupPrices, plan: Plan) -> Plan:
    """The plan with its simulated step."""
    simulated, model = groups_step(plan), prices.model
    step = simulated.step_seconds
    flops = prices.model_flops()
    peak = sum(
        plan.cluster_of(n).device.peak(prices.dtype) * group.devices
        for n, group in enumerate(plan.groups)
    )
    bubble = simulated.timeline.bubble
    prediction = Prediction(
        step, model.tokens / step, model.batch / step, flops / step / peak, bubble, flops
    )
    return replace(plan, prediction=prediction)


def _most_memory(prices: GroupPrices) -> int:
    return max(prices.memory_limit(part) for part in range(len(prices.parts)))


def _shardings(
    prices: GroupPrices, choices: Sequence[GroupChoice], count: int
) -> dict[tuple[str, Strategy], Sharding]:
    """Every function under the strategy of every group."""
    shardings: dict[tuple[str, Strategy], Sharding] = {}
    for choice in choices:
        pricer = prices.pricer(prices.type_of(choice.group))
        for i, call in enumerate(prices.model.calls):
            key = call.function, choice.strategy
            if key not in shardings:
                times = 1 if i in pricer.batch_only else count
                sharding = pricer.function_prices.sharding(call.function, choice.strategy, times)
                assert sharding is not None, "a group's strategy splits every function"
                shardings[key] = sharding
    return shardings


def _layers(
    prices: GroupPrices,
    choice: GroupChoice,
    stage: int,
    shardings: dict[tuple[str, Strategy], Sharding],
    samples: int,
) -> list[Layers]:
    """Runs of the group's calls and of those that depend on the batch alone, which all groups run."""
    pricer, layers = prices.pricer(prices.type_of(choice.group)), list[Layers]()
    first, last = choice.calls
    model = prices.model
    point = RunPoint(choice.strategy, model.batch, model.batch // samples, choice.memory)
    for i, call in enumerate(pricer.calls):
        batch_only = i in pricer.batch_only
        if not batch_only and not first <= i < last:
            continue
        at = pricer.call_prices.call_point(i, point.replica.call_point(per_step=batch_only))
        key = call.function, choice.strategy
        number = list(shardings).index(key)
        run = priced_layers(pricer, i, shardings[key], number, at)
        append_run(layers, replace(run, stage=stage))
    return layers
