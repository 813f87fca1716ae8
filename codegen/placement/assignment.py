"""PlacedStep of a model's step to devices by a placement: the device and the order of every unit.

Placements that cannot become a program are rejected here with the reason.
"""

from __future__ import annotations

import heapq

import msgspec
import torch

from ...ir.capture.resolve import resolve
from ...ir.capture.torch_private import is_operator, schema
from ...ir.errors import MismatchError, UsageError
from ...ir.lowering.linearize import PlacementUnit, TrainingStep, linearize, units
from ...ir.model.model import Model
from ...ir.plan.placement import Placement, check_placement

STRIDED = frozenset({"aten.as_strided.default", "aten.as_strided_copy.default"})


class PlacedStep(msgspec.Struct, frozen=True):
    """The step of a model on `ranks` devices: `device` of every unit, and one topological
    `order`."""

    step: TrainingStep
    units: tuple[PlacementUnit, ...]
    device: tuple[int, ...]
    order: tuple[int, ...]
    ranks: int

    def makers(self) -> dict[int, int]:
        """The unit that holds or computes each tensor."""
        names = {name: value for value, name in self.step.state_tensors.items()}
        producers: dict[int, int] = {}
        for number, unit in enumerate(self.units):
            if unit.op >= 0:
                producers.update((v, number) for v in self.step.ops[unit.op].results if v >= 0)
            elif not unit.update and unit.state_tensor in names:
                producers[names[unit.state_tensor]] = number
        return producers


def assign(placement: Placement, model: Model) -> PlacedStep:
    """Assign a model's step to devices.

    Raises MismatchError when the placement is for another step or separates colocated units,
    UsageError for an operator that cannot run on its own."""
    check_placement(placement)
    _check_model(placement, model)
    step = linearize(model)
    step_units = units(step, model)
    nodes = placement.graph.nodes
    names = [(number, unit.name) for number, unit in enumerate(step_units)]
    if [(node.id, node.name) for node in nodes] != names:
        raise MismatchError(
            f"the placement's graph has {len(nodes)} operators that are not the {len(step_units)} of "
            f"{model.name}'s step: place the model again"
        )
    device = tuple(placement.device[str(node.id)] for node in nodes)
    _check_updates(step_units, device)
    _check_operators(step)
    ranks = len(placement.target.devices)
    assignment = PlacedStep(step, step_units, device, (), ranks)
    return msgspec.structs.replace(assignment, order=_nearest_order(assignment, placement.order))


def _check_model(placement: Placement, model: Model) -> None:
    if not placement.model_digest:
        raise MismatchError(
            f"{placement.graph.name} was placed as a graph: its operators have times but no code; "
            f"place a model (`plait place file.py:make …`) to get a program"
        )
    if placement.model_digest != model.fingerprint():
        raise MismatchError(
            f"the placement is for {placement.graph.name} ({placement.model_digest}), this model "
            f"is {model.name} ({model.fingerprint()}): place again, or give the source that the "
            f"placement was made from"
        )
    if placement.global_batch != model.batch:
        raise MismatchError(
            f"the placement is for a global batch of {placement.global_batch}, the model was "
            f"traced with {model.batch}"
        )


def _check_updates(step_units: tuple[PlacementUnit, ...], device: tuple[int, ...]) -> None:
    home = {
        u.state_tensor: d
        for u, d in zip(step_units, device, strict=True)
        if u.state_tensor and not u.update
    }
    for unit, here in zip(step_units, device, strict=True):
        if unit.update and home[unit.state_tensor] != here:
            raise MismatchError(
                f"{unit.state_tensor} lies on device {home[unit.state_tensor]} and is updated on "
                f"device {here}: a tensor must be updated where it lies"
            )


def _check_operators(step: TrainingStep) -> None:
    """Reject operators that mutate operands, depend on strides, or draw from the process's random
    generator: on several devices they would compute something else."""
    for target in sorted({op.target for op in step.ops}):
        overload = resolve(target)
        assert is_operator(overload)
        if schema(overload).is_mutable:
            what = "writes into its operands"
        elif target in STRIDED:
            what = "depends on the strides of its operand"
        elif torch.Tag.nondeterministic_seeded in overload.tags:
            what = "draws from the process's random generator"
        else:
            continue
        scope = next(op.scope for op in step.ops if op.target == target)
        raise UsageError(f"{target} (in {scope}) {what}: it cannot be placed apart from the rest")


def _nearest_order(assignment: PlacedStep, wished: tuple[int, ...]) -> tuple[int, ...]:
    """The topological order nearest to the `wished` one."""
    place = {number: at for at, number in enumerate(wished)}
    makers = assignment.makers()
    before = [{makers[v] for v in unit.reads} for unit in assignment.units]
    after: list[list[int]] = [[] for _ in assignment.units]
    for number, needed in enumerate(before):
        for other in needed:
            after[other].append(number)
    left = [len(needed) for needed in before]
    ready = [(place[n], n) for n, count in enumerate(left) if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        _, number = heapq.heappop(ready)
        order.append(number)
        for other in after[number]:
            left[other] -= 1
            if not left[other]:
                heapq.heappush(ready, (place[other], other))
    return tuple(order)
