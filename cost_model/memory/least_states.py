"""Bytes of weights, gradients and optimizer states that no plan is below, from their elements alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ...ir.analysis.row_gradients import has_row_gradient
from ...ir.lowering.cast import narrowest_item_bytes
from ...ir.model.model import Model
from ...ir.plan.plan import Optimizer
from ...ir.plan.strategy import ROLES
from ..execution_model import ExecutionModel
from .host_states import states_on_device

STATE_KINDS = ("parameter", "optimizer")
ROUNDED_ELEMENTS = 3  # of a stage, beside one of each call: shares of bytes are rounded down


class LeastStates(NamedTuple):
    """Least bytes of a device by kind, when the optimizer steps, and what rounding may take off."""

    parameters: int
    gradients: int
    optimizer: int
    rounding: int

    @property
    def total_bytes(self) -> int:
        return max(0, self.parameters + self.gradients + self.optimizer - self.rounding)


def most_shards(roles: Iterable[str], devices: int, stages: int) -> dict[str, int]:
    """The most devices over which these roles spread weights and optimizer states, in `stages` stages at
    most. What is searched may split weights, whatever its role."""
    known = [ROLES[role] for role in roles]
    staged = min(devices, stages) if any(role.stages for role in known) else 1
    return {
        kind: devices
        if any(kind in role.shards or role.searched or role.experts for role in known)
        else staged
        for kind in STATE_KINDS
    }


def least_states(
    model: Model, optimizer: Optimizer, execution: ExecutionModel, shards: Mapping[str, int]
) -> LeastStates:
    """What the fullest device has of the states of a model at least: its average share, where every
    tensor that a call uses is on one device, or on as few as `shards` allows.

    Before the first parameter is stepped, its weights, states and gradients are all there, the gradients
    sharded as the states are; tables with sparse gradients have none of their size. Engines that shard
    over ranks whose weights may be apart already are taken to need nothing.
    """
    if execution.shards_over or execution.shards_replicated_states:
        return LeastStates(0, 0, 0, 0)
    used = {name for call in model.calls for name in call.parameters}
    states = [p for p in model.parameters if p.name in used]
    sparse = _with_row_gradients(model)
    trained = sum(p.type.elements for p in states if p.trainable)
    summed = sum(p.type.elements for p in states if p.trainable and p.name not in sparse)
    item = narrowest_item_bytes(model.parameters)
    summed_item = execution.gradient_item_bytes or item
    gradient_item = min(summed_item, execution.stepped_item_bytes or summed_item)
    stepped_item = states_on_device(optimizer) * optimizer.state_bytes
    return LeastStates(
        sum(p.type.bytes for p in states) // shards["parameter"],
        summed * gradient_item // shards["optimizer"],
        trained * stepped_item // shards["optimizer"],
        (len(model.calls) + ROUNDED_ELEMENTS) * (item + gradient_item + stepped_item),
    )


def _with_row_gradients(model: Model) -> set[str]:
    """Names of the tensors of which some call has a sparse gradient."""
    of_rows = {
        function.name: [has_row_gradient(function, item) for item in function.state_inputs()]
        for function in model.functions
    }
    return {
        name
        for call in model.calls
        for name, sparse in zip(call.parameters, of_rows[call.function], strict=True)
        if sparse
    }
