"""What an engine's file cannot say of a plan, one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from ...ir.plan.engines import engine_named
from ...ir.plan.flat_shard import FULL
from ...ir.plan.plan import Plan
from .engine_layout import EngineLayout, layer_actions, stack_of_plan


def differences(plan: Plan, layout: EngineLayout) -> Iterator[str]:
    """Sentences on what a plan does and its file in the engine's form does not."""
    yield from _strategies(plan, layout)
    yield from _actions(plan, layout)
    for choice in plan.compression:
        yield f"{choice.subject} over {choice.role} travel whole: {choice.program} is not said here"
    if any(s.fraction != FULL for s in plan.strategies):
        yield "zero3 shards whole weights: a fraction of them is not said here"
    if plan.optimizer.demand != "elementwise":
        yield f"{plan.optimizer.name} needs {plan.optimizer.demand} steps: check what the engine does"
    if plan.optimizer.on_host and not layout.optimizer_on_host:
        yield "the optimizer steps on the device: its states take device memory"
    if layout.pipeline > 1 and plan.schedule != layout.pipeline_schedule:
        yield f"schedule {plan.schedule} becomes {layout.pipeline_schedule}"
    if engine_named(layout.engine).even and layout.pipeline > 1:
        yield f"stages are divided by the engine, not as {'/'.join(map(str, layout.split))} layers"


def _strategies(plan: Plan, layout: EngineLayout) -> Iterator[str]:
    said = layout.strategy
    for layers in plan.layers:
        strategy = plan.strategy_of(layers)
        if not layers.batch_only and str(strategy) != str(said):
            yield f"{_names(plan, layers.first, layers.last)}: {strategy} becomes {said}"


def _actions(plan: Plan, layout: EngineLayout) -> Iterator[str]:
    stack = stack_of_plan(plan, layout.engine)
    said = layer_actions(layout, stack.layers)
    planned = [plan.layers_of(call).memory for call in stack.firsts]
    pairs = list(zip(planned, said, strict=True))
    ends = (*stack.firsts[1:], stack.end)
    for (mine, theirs), run in groupby(range(stack.layers), key=pairs.__getitem__):
        numbers = list(run)
        if mine != theirs:
            names = _names(plan, stack.firsts[numbers[0]], ends[numbers[-1]])
            yield f"{names}: {mine} becomes {theirs}"


def _names(plan: Plan, first: int, last: int) -> str:
    """`model.layers.3 to model.layers.7`."""
    paths = [plan.calls[i] or f"call {i}" for i in (first, last - 1) if i < len(plan.calls)]
    return " to ".join(dict.fromkeys(paths)) or f"calls {first} to {last - 1}"
