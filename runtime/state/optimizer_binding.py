"""Lets an optimizer that was built on one set of tensors step on another.

Factories and parameter groups read names, shapes and values, so an optimizer is built on whole
tensors; its references to them are then replaced by this rank's shards. Every reference counts:
groups, states, lists and dicts in attributes, and the optimizers that it wraps.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..torch_private import step_hooks

ParameterState = dict[str, Any]
Group = dict[str, Any]
StateConverter = Callable[[Tensor, ParameterState], ParameterState]


def optimizers_within(optimizer: Any) -> list[Any]:
    """The optimizer and those that it holds in its attributes, outer ones first."""
    parts: list[Any] = [optimizer]
    for part in parts:  # grows while it is read
        for value in vars(part).values():
            for member in _members(value):
                if isinstance(member, torch.optim.Optimizer) and all(
                    member is not p for p in parts
                ):
                    parts.append(member)
    return parts


def _members(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else (value,)


def groups_of(optimizer: Any) -> list[Group]:
    """The distinct parameter groups of an optimizer and of those within it, in a fixed order."""
    groups: dict[int, Group] = {}
    for part in optimizers_within(optimizer):
        for group in getattr(part, "param_groups", ()):
            groups.setdefault(id(group), group)
    return list(groups.values())


def states_of(optimizer: Any) -> dict[Tensor, ParameterState]:
    """The state of every parameter, of whichever optimizer within has one."""
    states: dict[Tensor, ParameterState] = {}
    for part in optimizers_within(optimizer):
        for parameter, state in getattr(part, "state", {}).items():
            if isinstance(parameter, Tensor):
                states.setdefault(parameter, {}).update(state)
    return states


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for member in _members(value):
            yield from tensors_in(member)


FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
FUSED_TYPES = (torch.float32, torch.float64)  # fused steps of 16 bits round otherwise


def prefer_fused(optimizer: Any, sparse: Collection[Tensor]) -> None:
    """Let torch's own optimizers take their fused step on a CPU, one pass over each tensor, unless their
    user has chosen another one or gradients are `sparse`. On other devices torch takes a quick one by
    itself."""
    for part in optimizers_within(optimizer):
        for group in getattr(part, "param_groups", ()) if type(part) in FUSED else ():
            free = not any(group.get(name) for name in ("foreach", "differentiable", "capturable"))
            exact = all(
                p.is_cpu and p.dtype in FUSED_TYPES and p not in sparse for p in group["params"]
            )
            if free and exact and group.get("fused", False) is None:
                group["fused"] = True


class CodeReference(NamedTuple):
    """A function, and the global or closed-over variable by which it refers to a tensor."""

    function: str
    variable: str


def references_in_code(optimizer: Any, tensors: Container[Tensor]) -> Iterator[CodeReference]:
    """Where methods and step hooks of an optimizer refer to some of these tensors, or to a module that
    has them, by name instead of through its groups. Such references cannot be replaced."""
    for part in optimizers_within(optimizer):
        functions = [
            member
            for cls in type(part).__mro__
            if not cls.__module__.startswith("torch.") and cls is not object
            for member in vars(cls).values()
        ]
        for function in (*functions, *step_hooks(part)):
            plain = inspect.unwrap(getattr(function, "__func__", function))
            if not inspect.isfunction(plain):
                continue
            variables = inspect.getclosurevars(plain)
            for name, value in {**variables.globals, **variables.nonlocals}.items():
                candidates = (
                    value.parameters() if isinstance(value, nn.Module) else tensors_in(value)
                )
                if any(tensor in tensors for tensor in candidates):
                    yield CodeReference(plain.__name__, name)


def rebound(
    optimizer: Any,
    everything: Iterable[Tensor],
    targets: Mapping[Tensor, Tensor],
    convert: StateConverter,
    *,
    in_place: bool = False,
) -> Any:
    """The optimizer with each tensor of `everything` replaced by its target; those without one are
    dropped from its groups.

    `convert` gives the state of a tensor's target from the tensor's own. A copy, unless `in_place`:
    then the same object, so that schedulers made for it go on steering it.
    """
    absent = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    memo: dict[int, Any] = {id(tensor): targets.get(tensor, absent) for tensor in everything}
    parts = optimizers_within(optimizer)
    results = parts if in_place else [part.__class__.__new__(part.__class__) for part in parts]
    memo.update((id(part), result) for part, result in zip(parts, results, strict=True))
    states = [getattr(part, "state", {}) for part in parts]
    copies = [
        deepcopy({k: v for k, v in vars(part).items() if k != "state"}, memo) for part in parts
    ]
    for part, result, attributes, state in zip(parts, results, copies, states, strict=True):
        has_state = "state" in vars(part)
        vars(result).update(attributes)
        if has_state:
            result.state = defaultdict(dict)
            for tensor, values in state.items():
                if tensor in targets:
                    result.state[targets[tensor]] = convert(tensor, values)
    for group in groups_of(results[0]):
        _drop(group, absent)
    return results[0]


def _drop(group: Group, absent: Tensor) -> None:
    """Remove a tensor from a group, and its place among the names."""
    remaining = [i for i, p in enumerate(group["params"]) if p is not absent]
    if "param_names" in group:
        group["param_names"] = [group["param_names"][i] for i in remaining]
    group["params"] = [group["params"][i] for i in remaining]
