"""The buffers of a whole training step of a model on one device."""

from __future__ import annotations

from ...ir.lowering.forward_backward import Variant
from ...ir.model import Model
from .call_storage import Routine
from .lifetimes import ALIGNMENT_BYTES, StepBuffers
from .walk import Calls


def step_buffers(
    model: Model, variant: Variant = "keep", alignment_bytes: int = ALIGNMENT_BYTES
) -> StepBuffers:
    """Every buffer of a step: all calls forward, then all backward in reverse, under one memory variant.

    Names say where a buffer is made: micro-batch (0), call, piece, value.
    """
    routines = {f.name: Routine(f, variant) for f in model.functions}
    walk = Calls(model, {i: routines[call.function] for i, call in enumerate(model.calls)})
    numbers = range(len(model.calls))
    for number in numbers:
        walk.forward("0", number)
    for number in reversed(numbers):
        if walk.routines[number].function.differentiable:
            walk.backward("0", number)
    return walk.life.step(alignment_bytes)
