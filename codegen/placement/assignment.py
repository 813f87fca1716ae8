"""A placement held against the model that it is for: which operator of the step runs where, when.

What cannot become a program is refused here, once, with the reason.
"""

from __future__ import annotations

import heapq

import msgspec
import torch

from ...ir.capture.resolve import resolve
from ...ir.errors import MismatchError, UsageError
from ...ir.lowering.linearize import Step, Unit, step_of, units
from ...ir.model import Model
from ...ir.placement import Placement, check_placement

STRIDED = frozenset({"aten.as_strided.default", "aten.as_strided_copy.default"})


class Assignment(msgspec.Struct, frozen=True):
    """The step of a model on `ranks` devices: `device` of every unit, and one `order` of them all in
    which every unit comes after those that make what it reads."""

    step: Step
    units: tuple[Unit, ...]
    device: tuple[int, ...]
    order: tuple[int, ...]
    ranks: int

    def makers(self) -> dict[int, int]:
        """By tensor, the unit that holds or makes it."""
        names = {name: value for value, name in self.step.held.items()}
        found: dict[int, int] = {}
        for number, unit in enumerate(self.units):
            if unit.op >= 0:
                found.update((v, number) for v in self.step.ops[unit.op].results if v >= 0)
            elif not unit.update and unit.held in names:
                found[names[unit.held]] = number
        return found


def assign(placement: Placement, model: Model) -> Assignment:
    """Raises MismatchError when the placement is not one of this model's step, or tears apart what
    belongs together; UsageError for an operator that cannot run on its own."""
    check_placement(placement)
    _check_model(placement, model)
    step = step_of(model)
    found = units(step, model)
    nodes = placement.graph.nodes
    names = [(number, unit.name) for number, unit in enumerate(found)]
    if [(node.id, node.name) for node in nodes] != names:
        raise MismatchError(
            f"the placement's graph has {len(nodes)} operators that are not the {len(found)} of "
            f"{model.name}'s step: place the model again"
        )
    device = tuple(placement.device[str(node.id)] for node in nodes)
    _check_updates(found, device)
    _check_operators(step)
    ranks = len(placement.target.devices)
    made = Assignment(step, found, device, (), ranks)
    return msgspec.structs.replace(made, order=_in_order(made, placement.order))


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


def _check_updates(found: tuple[Unit, ...], device: tuple[int, ...]) -> None:
    home = {u.held: d for u, d in zip(found, device, strict=True) if u.held and not u.update}
    for unit, here in zip(found, device, strict=True):
        if unit.update and home[unit.held] != here:
            raise MismatchError(
                f"{unit.held} lies on device {home[unit.held]} and is updated on device {here}: "
                f"a tensor must be updated where it lies"
            )


def _check_operators(step: Step) -> None:
    """What writes into its operands, reads them by where they lie in memory, or draws from a generator
    that every process has its own of, would not do on several devices what it does in one process."""
    for target in sorted({op.target for op in step.ops}):
        found = resolve(target)
        assert isinstance(found, torch._ops.OpOverload)
        if found._schema.is_mutable:
            what = "writes into its operands"
        elif target in STRIDED:
            what = "reads its operand by its place in memory"
        elif torch.Tag.nondeterministic_seeded in found.tags:
            what = "draws from the process's random generator"
        else:
            continue
        scope = next(op.scope for op in step.ops if op.target == target)
        raise UsageError(f"{target} (in {scope}) {what}: it cannot be placed apart from the rest")


def _in_order(made: Assignment, wished: tuple[int, ...]) -> tuple[int, ...]:
    """The order nearest to the one wished for in which everything is made before it is read."""
    place = {number: at for at, number in enumerate(wished)}
    makers = made.makers()
    before = [{makers[v] for v in unit.reads} for unit in made.units]
    after: list[list[int]] = [[] for _ in made.units]
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
