"""Full, unsharded tensors on every rank, by the names that the user's module gives them.

All ranks call these together. Each tensor is gathered on the ranks of the first stage that
has it and broadcast along the pipeline, one tensor at a time; the results are on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...ir.plan.program import ProgramTable
from ..comm.program_groups import MeshGroups
from .local_parameter import LocalParameter
from .parameters import ParameterStore

Shape = tuple[int, ...]
K = TypeVar("K")
V = TypeVar("V")


def values(store: ParameterStore, groups: MeshGroups) -> dict[str, Tensor]:
    """All parameters and buffers, by name."""
    return {
        name: broadcast_from_owner(store, groups, name, partial(value_of, store, name))
        for name in names_in_order(store, groups)
        if store.specs[name].kind != "constant"
    }


def names_in_order(store: ParameterStore, groups: MeshGroups) -> list[str]:
    """Names of all tensors, in one order on all ranks: device groups list them by their own layers."""
    return list(store.specs) if groups.devices is None else sorted(store.specs)


def gradients(store: ParameterStore, groups: MeshGroups) -> dict[str, Tensor]:
    """Gradients of the last step, summed over the batch, by name."""
    trained = [n for n in names_in_order(store, groups) if store.specs[n].trainable]
    return {
        name: broadcast_from_owner(store, groups, name, partial(_full_gradient, store, name))
        for name in with_gradients(store, groups, trained)
    }


def with_gradients(store: ParameterStore, groups: MeshGroups, trained: Sequence[str]) -> list[str]:
    """Those of some trained tensors that have a gradient on any stage."""
    flags = [float(_gradient(store.parameters.get(name)) is not None) for name in trained]
    present = groups.down.all_reduce(torch.tensor(flags, device=store.device)).tolist()
    return [name for name, there in zip(trained, present, strict=True) if there]


def names_of(module: nn.Module, table: ProgramTable) -> dict[str, str]:
    """The module's state_dict names, each with the name that the program gives the tensor."""
    first = {
        alias: name
        for spec in table.state_tensors
        for name in spec.names()
        for alias in spec.aliases
    }
    return {name: first.get(name, name) for name in module.state_dict()}


def gather_along_pipeline(local_items: dict[K, V], groups: MeshGroups) -> dict[K, V]:
    """Union of the items of all stages, in the same order on every rank."""
    if groups.down.size == 1:
        return local_items
    rows = groups.down.gather_objects(local_items, "optimizer states of stages")
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
    if groups.owns(name, spec.stages):
        value = make().detach().to(store.device).clone(memory_format=torch.contiguous_format)
    else:
        value = torch.empty(
            spec.type.shape if shape is None else shape,
            dtype=dtype or getattr(torch, store.table.stepped_dtype(spec)),
            device=store.device,
        )
    return groups.broadcast_from_owner(value, name, spec.stages).cpu()


def value_of(store: ParameterStore, name: str) -> Tensor:
    """A full tensor, on the ranks of a stage that has it."""
    return store.gather_value(store.parameters[name])


def _full_gradient(store: ParameterStore, name: str) -> Tensor:
    return store.gather(store.parameters[name], store.reduced_gradient(store.parameters[name]))


def _gradient(parameter: LocalParameter | None) -> Any:
    return None if parameter is None or parameter.leaf is None else parameter.leaf.grad
