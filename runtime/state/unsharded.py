"""Full, unsharded tensors on every rank, by the names that the user's module gives them.

All ranks call these together. Each tensor is gathered on the ranks of the first stage that
has it and broadcast along the pipeline, one tensor at a time; the results are on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..comm.program_groups import MeshGroups
from .local_parameter import LocalParameter
from .parameters import ParameterStore

Shape = tuple[int, ...]
K = TypeVar("K")
V = TypeVar("V")


def values(store: ParameterStore, groups: MeshGroups) -> dict[str, Tensor]:
    """All parameters and buffers, by name."""
    return {
        name: broadcast_from_owner(store, groups, name, partial(_value, store, name))
        for name, spec in store.specs.items()
        if spec.kind != "constant"
    }


def gradients(store: ParameterStore, groups: MeshGroups) -> dict[str, Tensor]:
    """All gradients of the last step, summed over the batch, by name."""
    trained = [name for name, spec in store.specs.items() if spec.trainable]
    flags = [float(_gradient(store.parameters.get(name)) is not None) for name in trained]
    present_anywhere = groups.down.all_reduce(torch.tensor(flags, device=store.device)).tolist()
    return {
        name: broadcast_from_owner(store, groups, name, partial(_full_gradient, store, name))
        for name, present in zip(trained, present_anywhere, strict=True)
        if present
    }


class OptimizerState(NamedTuple):
    """State of an optimizer by (parameter, key): full tensors, and plain numbers."""

    tensors: dict[tuple[str, str], Tensor]
    numbers: dict[tuple[str, str], float]


class _StateItem(NamedTuple):
    """One item of an optimizer's state. `shape` is None where it is shaped as the parameter."""

    shape: Shape | None
    dtype: torch.dtype | None
    number: float | None


def optimizer_state(
    store: ParameterStore,
    groups: MeshGroups,
    local_items: Mapping[str, Mapping[str, Any]],
    replicated: Collection[str],
) -> OptimizerState:
    """The full optimizer state; all ranks together.

    `local_items` are this rank's by parameter and key, `replicated` the parameters whose items every
    rank of a stage has in full.
    """
    items = gather_along_pipeline(
        {
            (name, key): _state_item(store.parameters[name], value, name in replicated)
            for name, state in local_items.items()
            for key, value in state.items()
        },
        groups,
    )

    def full_value(name: str, key: str, unsharded: bool) -> Tensor:
        value = local_items[name][key]
        return value if unsharded else store.gather(store.parameters[name], value)

    tensors, numbers = {}, {}
    for (name, key), item in items.items():
        if item.number is not None:
            numbers[name, key] = item.number
            continue
        tensors[name, key] = broadcast_from_owner(
            store,
            groups,
            name,
            partial(full_value, name, key, item.shape is not None),
            item.shape,
            item.dtype,
        )
    return OptimizerState(tensors, numbers)


def _state_item(parameter: LocalParameter, value: Any, replicated: bool) -> _StateItem:
    if not isinstance(value, Tensor):
        return _StateItem(None, None, float(value))
    assert parameter.leaf is not None
    sharded = not replicated and value.shape == parameter.leaf.shape
    return _StateItem(None if sharded else tuple(value.shape), value.dtype, None)


def gather_along_pipeline(local_items: dict[K, V], groups: MeshGroups) -> dict[K, V]:
    """Union of the items of all stages, in the same order on every rank."""
    if groups.down.size == 1:
        return local_items
    rows: list[Any] = [None] * groups.down.size
    dist.all_gather_object(rows, local_items, group=groups.down.handle)
    return {key: item for row in reversed(rows) for key, item in row.items()}


def broadcast_from_owner(
    store: ParameterStore,
    groups: MeshGroups,
    name: str,
    make: Callable[[], Tensor],
    shape: Shape | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Result of `make` on the first stage that has a tensor, on the CPU of every rank, in new memory."""
    spec = store.specs[name]
    if groups.stage == spec.stages[0]:
        value = make().detach().to(store.device).clone(memory_format=torch.contiguous_format)
    else:
        value = torch.empty(
            spec.type.shape if shape is None else shape,
            dtype=dtype or getattr(torch, store.table.stepped_dtype(spec)),
            device=store.device,
        )
    return groups.down.broadcast(value, spec.stages[0]).cpu()


def _value(store: ParameterStore, name: str) -> Tensor:
    return store.gather_value(store.parameters[name])


def _full_gradient(store: ParameterStore, name: str) -> Tensor:
    return store.gather(store.parameters[name], store.reduced_gradient(store.parameters[name]))


def _gradient(parameter: LocalParameter | None) -> Any:
    return None if parameter is None or parameter.leaf is None else parameter.leaf.grad
