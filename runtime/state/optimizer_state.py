"""An optimizer's states and options as the tensors and numbers of a checkpoint, and back.

A state is named by its key, by the optimizer that has it where one wraps others (`exp_avg@1`), and by
its place in a list (`GG[0]`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor

from ...ir.errors import MismatchError, UsageError
from .optimizer import LocalOptimizer
from .optimizer_binding import Group, optimizers_within

Items = dict[str, Any]
NOT_OPTIONS = ("params", "param_names", "seed")
KEY = re.compile(r"(?P<key>.*?)(@(?P<part>\d+))?(\[(?P<place>\d+)\])?")


class StoredGroup(msgspec.Struct, frozen=True):
    """Options of a parameter group of the optimizer, and the names of its tensors."""

    options: dict[str, Any]
    names: tuple[str, ...]


def local_items(local: LocalOptimizer) -> dict[str, Items]:
    """This rank's state items by name of their tensor; of whole tensors its owner has them."""
    parts = optimizers_within(local.optimizer)
    items: dict[str, Items] = {}
    here = local.whole.store.parameters
    for name, leaf in local.leaves.items():
        if name not in here:
            continue  # another stage gives it
        items[name] = {
            key: value
            for number, part in enumerate(parts)
            for key, value in _flat(getattr(part, "state", {}).get(leaf, {}), number)
        }
    return items


def _flat(state: Mapping[str, Any], part: int) -> Iterator[tuple[str, Any]]:
    """Tensors and numbers of a state, those of lists one by one; raises UsageError for others."""
    for key, value in state.items():
        name = f"{key}@{part}" if part else str(key)
        members = (
            {f"{name}[{i}]": member for i, member in enumerate(value)}
            if isinstance(value, list | tuple)
            else {name: value}
        )
        for member_name, member in members.items():
            if isinstance(member, Tensor | bool | int | float) and "/" not in member_name:
                yield member_name, member
            elif member is not None:
                raise UsageError(
                    f"the optimizer's state {key!r} is a {type(member).__name__}, which a checkpoint "
                    f"does not hold: it holds tensors, numbers and lists of them"
                )


def base_key(name: str) -> str:
    """The key of a state in its optimizer, from the name of an item."""
    match = KEY.fullmatch(name)
    return match["key"] if match else name


def _nested(items: Mapping[str, Any], part: int) -> Items:
    """The state of one optimizer from its items: the inverse of `_flat`."""
    state: Items = {}
    for name, value in items.items():
        match = KEY.fullmatch(name)
        if match is None or int(match["part"] or 0) != part:
            continue
        if match["place"] is None:
            state[match["key"]] = value
        else:
            members = state.setdefault(match["key"], [])
            members.extend([None] * (int(match["place"]) + 1 - len(members)))
            members[int(match["place"])] = value
    return state


def restore(
    local: LocalOptimizer, saved: Mapping[str, Mapping[str, Any]], groups: tuple[StoredGroup, ...]
) -> None:
    """Give the optimizer this rank's part of saved states, by name of their tensors, and the options of
    its groups; raises MismatchError where the groups are others."""
    parts = optimizers_within(local.optimizer)
    _check_groups(local, groups)
    states = [
        {leaf: _nested(saved.get(name, {}), number) for name, leaf in local.leaves.items()}
        for number in range(len(parts))
    ]
    if len(parts) == 1:
        _load(local.optimizer, states[0], groups)
        return
    for group, stored in zip(_distinct_groups(parts), groups, strict=False):
        restore_options(group, stored.options)
    for part, state in zip(parts, states, strict=True):
        for leaf, values in state.items():
            if values:
                part.state[leaf] = {key: _cast(leaf, key, value) for key, value in values.items()}


def _load(
    optimizer: torch.optim.Optimizer,
    states: Mapping[Tensor, Items],
    groups: tuple[StoredGroup, ...],
) -> None:
    """Load through the optimizer's own `load_state_dict`."""
    packed: list[Group] = []
    state: dict[int, Items] = {}
    for number, group in enumerate(optimizer.param_groups):
        first = len(state)
        for leaf in group["params"]:
            state[len(state)] = states.get(leaf, {})
        packed.append({**group, "params": list(range(first, len(state)))})
        if groups:
            restore_options(packed[-1], groups[number].options)
    optimizer.load_state_dict({"state": state, "param_groups": packed})


def _cast(leaf: Tensor, key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_cast(leaf, key, member) for member in value]
    if not isinstance(value, Tensor) or key == "step":
        return value
    return value.to(leaf.device, leaf.dtype if value.is_floating_point() else value.dtype)


def _distinct_groups(parts: list[Any]) -> list[Group]:
    return list({id(g): g for part in parts for g in getattr(part, "param_groups", ())}.values())


def _check_groups(local: LocalOptimizer, groups: tuple[StoredGroup, ...]) -> None:
    there = {name: number for number, group in enumerate(groups) for name in group.names}
    here = {name: number for number, names in enumerate(local.group_names) for name in names}
    if not groups or (there == here and len(groups) == len(local.group_names)):
        return
    name = next((n for n in sorted(there.keys() | here.keys()) if there.get(n) != here.get(n)), "")
    where = (
        f": {name} is in group {there.get(name, 'none')} there and {here.get(name, 'none')} here"
        if name
        else ""
    )
    raise MismatchError(
        f"the checkpoint has {len(groups)} parameter groups, the program's optimizer "
        f"{len(local.group_names)}{where}; give the parameter groups that it was saved with"
    )


def stored_groups(local: LocalOptimizer) -> tuple[StoredGroup, ...]:
    """The groups of an optimizer with their present options."""
    groups = _distinct_groups(optimizers_within(local.optimizer))
    return tuple(
        StoredGroup(plain_options(group), names)
        for group, names in zip(groups, local.group_names, strict=True)
    )


def plain_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a group that are numbers, texts, or lists of numbers."""
    plain = {key: _plain(value) for key, value in group.items() if key not in NOT_OPTIONS}
    return {key: value for key, value in plain.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, tuple | list) and all(isinstance(v, int | float) for v in value):
        return [float(v) for v in value]
    return value if isinstance(value, bool | int | float | str) else None


def restore_options(group: Group, options: Mapping[str, Any]) -> None:
    """Set the options that a group has to saved values, in the types that the optimizer uses."""
    group.update({k: _like(group[k], v) for k, v in options.items() if k in group})


def _like(current: Any, saved: Any) -> Any:
    if isinstance(current, Tensor):
        return torch.full_like(current, saved)
    return type(current)(saved) if isinstance(saved, list) and current is not None else saved


def pack_scheduler(scheduler: Any) -> Tensor:
    """The state of a learning-rate scheduler as bytes; raises UsageError where it cannot be read back
    without running code."""
    buffer = io.BytesIO()
    torch.save(scheduler.state_dict(), buffer)
    packed = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    try:
        unpack_scheduler(packed)
    except Exception as error:
        raise UsageError(
            f"the state of {type(scheduler).__name__} has more than plain values, which a checkpoint "
            f"does not hold: {error}"
        ) from error
    return packed


def unpack_scheduler(packed: Tensor) -> dict[str, Any]:
    """The state that `pack_scheduler` packed; runs no code."""
    data = io.BytesIO(packed.numpy().tobytes())
    state: dict[str, Any] = torch.load(data, weights_only=True)
    return state
