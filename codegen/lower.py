"""Lowering: every (function, sharding, memory variant) of a plan once, as local pieces."""

from __future__ import annotations

from itertools import chain, count

import msgspec

from ..ir.analysis.dataflow import Flow
from ..ir.errors import MismatchError
from ..ir.lowering.chunk import Form
from ..ir.lowering.forward_backward import Pieces, split
from ..ir.model import Function, Model
from ..ir.plan.plan import DIVIDED, Layers, Memory, Plan, Sharding
from ..ir.verify import verify_fit
from .python_source import identifier


class Lowered(msgspec.Struct, frozen=True):
    """One generated module: a local function, its forward and backward, and the runs of calls that use
    it. `form` is how it was split; of a function that runs in pieces, one of them."""

    name: str
    local: Function
    pieces: Pieces
    variant: Memory
    number: int  # of the sharding in the plan
    sharding: Sharding
    layers: tuple[Layers, ...]
    function: Function
    form: Form

    @property
    def divided(self) -> bool:
        return self.variant in DIVIDED


def lower(plan: Plan, model: Model, found: Flow) -> tuple[Lowered, ...]:
    """Raises MismatchError when the plan was made for another model."""
    if plan.model_digest != model.fingerprint():
        raise MismatchError(
            f"the plan is for {plan.model} ({plan.model_digest}), this model is {model.name} "
            f"({model.fingerprint()}): plan again, or give the source that the plan was made from"
        )
    if plan.global_batch != model.batch:
        raise MismatchError(
            f"the plan is for a global batch of {plan.global_batch}, the model was traced with "
            f"{model.batch}"
        )
    axes = found.axes
    verify_fit(plan, model, axes)
    uses: dict[tuple[int, Memory], list[Layers]] = {}
    for layers in plan.layers:
        uses.setdefault((layers.sharding, layers.memory), []).append(layers)
    taken: set[str] = set()
    lowered = []
    for (number, variant), runs in uses.items():
        sharding = plan.shardings[number]
        function = model.function(sharding.function)
        form = plan.form_of(runs[0], function, axes[function.name])
        local = form.local(function)
        usual = plan.shardings[next(n for n, _ in uses if _same_function(plan, n, number))].strategy
        word = "" if sharding.strategy == usual else identifier(str(sharding.strategy))
        name = _name("_".join(filter(None, (function.name, word))), variant, taken)
        taken.add(name)
        pieces = split(local, runs[0].variant)
        lowered.append(
            Lowered(name, local, pieces, variant, number, sharding, tuple(runs), function, form)
        )
    return tuple(lowered)


def _same_function(plan: Plan, one: int, other: int) -> bool:
    return plan.shardings[one].function == plan.shardings[other].function


def _name(function: str, variant: Memory, taken: set[str]) -> str:
    """A module's name: the function's (and its strategy's, where that is not the first one's), then
    with its memory variant, then with a number."""
    names = chain(
        (function, identifier(f"{function}_{variant}")), (f"{function}_{n}" for n in count(2))
    )
    return next(name for name in names if name not in taken)
