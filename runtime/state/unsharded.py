"""Whole, unsharded tensors on every rank, by the names that the user's module gives them.

All ranks call these together. Each tensor is put together on the ranks of the first stage that
holds it and sent along the pipeline, one tensor at a time; the results lie on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..comm.program_groups import MeshGroups
from ..compression.optimizers.carried import carried
from .parameters import Kept, Store

Shape = tuple[int, ...]
K = TypeVar("K")
V = TypeVar("V")


def values(store: Store, groups: MeshGroups) -> dict[str, Tensor]:
    """Every parameter and buffer."""
    return {
        name: everywhere(store, groups, name, partial(_value, store, name))
        for name, held in store.everything.items()
        if held.kind != "constant"
    }


def gradients(store: Store, groups: MeshGroups) -> dict[str, Tensor]:
    """Every gradient of the last step, summed over the batch."""
    trained = [name for name, held in store.everything.items() if held.trainable]
    flags = [float(_gradient(store.kept.get(name)) is not None) for name in trained]
    known = groups.down.all_reduce(torch.tensor(flags, device=store.device)).tolist()
    return {
        name: everywhere(store, groups, name, partial(_whole_gradient, store, name))
        for name, present in zip(trained, known, strict=True)
        if present
    }


class OptimizerState(NamedTuple):
    """What the optimizer keeps, by parameter and key: whole tensors, and plain numbers."""

    tensors: dict[tuple[str, str], Tensor]
    numbers: dict[tuple[str, str], float]


class _Entry(NamedTuple):
    """One item of an optimizer's state. `shape` is None where it is shaped as the parameter."""

    shape: Shape | None
    dtype: torch.dtype | None
    number: float | None


def optimizer_state(
    store: Store, groups: MeshGroups, optimizer: torch.optim.Optimizer | None
) -> OptimizerState:
    """The whole optimizer state."""
    mine: dict[str, dict[str, Any]] = {}
    if optimizer is not None:
        pieces = [(k.name, k.leaf) for k in store.trained() if k.leaf is not None]
        kept = optimizer.state if store.leader is None else carried(store.leader)
        mine = {name: kept.get(leaf, {}) for name, leaf in pieces}
    entries = shared(
        {
            (name, key): _entry(store.kept[name], value)
            for name, state in mine.items()
            for key, value in state.items()
        },
        groups,
    )

    def make(name: str, key: str, own: bool) -> Tensor:
        value = mine[name][key]
        return value if own else store.gather(store.kept[name], value)

    tensors, numbers = {}, {}
    for (name, key), entry in entries.items():
        if entry.number is not None:
            numbers[name, key] = entry.number
            continue
        tensors[name, key] = everywhere(
            store,
            groups,
            name,
            partial(make, name, key, entry.shape is not None),
            entry.shape,
            entry.dtype,
        )
    return OptimizerState(tensors, numbers)


def _entry(kept: Kept, value: Any) -> _Entry:
    if not isinstance(value, Tensor):
        return _Entry(None, None, float(value))
    assert kept.leaf is not None
    shaped = value.shape == kept.leaf.shape
    return _Entry(None if shaped else tuple(value.shape), value.dtype, None)


def shared(mine: dict[K, V], groups: MeshGroups) -> dict[K, V]:
    """Everybody's entries along the pipeline, in the same order on every rank."""
    if groups.down.size == 1:
        return mine
    rows: list[Any] = [None] * groups.down.size
    dist.all_gather_object(rows, mine, group=groups.down.handle)
    return {key: entry for row in reversed(rows) for key, entry in row.items()}


def everywhere(
    store: Store,
    groups: MeshGroups,
    name: str,
    make: Callable[[], Tensor],
    shape: Shape | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What the first stage that holds a tensor makes, on the CPU of every rank, in new memory."""
    held = store.everything[name]
    if groups.stage == held.stages[0]:
        made = make().detach().to(store.device).clone(memory_format=torch.contiguous_format)
    else:
        made = torch.empty(
            held.type.shape if shape is None else shape,
            dtype=dtype or getattr(torch, held.type.dtype),
            device=store.device,
        )
    return groups.down.broadcast(made, held.stages[0]).cpu()


def _value(store: Store, name: str) -> Tensor:
    return store.gather_value(store.kept[name])


def _whole_gradient(store: Store, name: str) -> Tensor:
    return store.gather(store.kept[name], store.summed(store.kept[name]))


def _gradient(kept: Kept | None) -> Any:
    return None if kept is None or kept.leaf is None else kept.leaf.grad
