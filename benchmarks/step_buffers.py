"""Buffers of a training step of an unsharded model on one device."""

from __future__ import annotations

from plait.ir.model.model import Model
from plait.ir.plan.memory_action import Variant
from plait.planner.allocation.call_storage import CallStorage
from plait.planner.allocation.lifetimes import ALIGNMENT_BYTES, StepBuffers
from plait.planner.allocation.walk import CallWalk


def step_buffers(
    model: Model, variant: Variant = "keep", alignment_bytes: int = ALIGNMENT_BYTES
) -> StepBuffers:
    """Buffers of a step: all calls forward, then all backward in reverse, under one memory variant.

    Names give the origin: micro-batch (0), call, direction, value.
    """
    storages = {f.name: CallStorage(f, variant) for f in model.functions}
    walk = CallWalk(model, {i: storages[call.function] for i, call in enumerate(model.calls)})
    numbers = range(len(model.calls))
    for number in numbers:
        walk.forward("0", number)
    for number in reversed(numbers):
        if walk.storages[number].function.differentiable:
            walk.backward("0", number)
    return walk.life.finish(alignment_bytes)
