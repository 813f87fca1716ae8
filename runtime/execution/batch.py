"""From the global batch that the user gives to the piece that one rank works on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...ir.capture.batch import leaves
from ...ir.errors import MismatchError
from ...ir.layout import along, local_type
from ...ir.lowering.localize import MICRO
from ...ir.mesh import Axis, Mesh
from ...ir.program import BatchTensor, Table
from ..comm.slicing import join, piece

Batch = Tensor | Mapping[str, Any] | tuple[Any, ...] | list[Any]


def local_batch(
    batch: Batch, table: Table, rank: int, names: tuple[str, ...], device: torch.device
) -> list[Tensor]:
    """This rank's pieces of the tensors `names`, in order.

    The whole batch is checked first, so that every rank refuses a wrong one alike. Raises
    MismatchError naming the tensor with its global and local size.
    """
    check_keys(batch, table)
    found = {t.name: checked(find(batch, t), t, table) for t in table.batch}
    wanted = {t.name: t for t in table.batch}
    pieces = []
    for name in names:
        tensor = wanted[name]
        cut = local_piece(found[name], tensor, table, rank)
        pieces.append(cut.to(device=device, dtype=getattr(torch, tensor.type.dtype)))
    return pieces


def local_piece(whole: Tensor, tensor: BatchTensor, table: Table, rank: int) -> Tensor:
    """This rank's piece of every micro-batch, one after the other."""
    mesh, place = with_micro(table), table.mesh.coordinate(rank)
    state, factors, layout = tensor.layout[0], tensor.factors, tensor.layout
    ways = range(table.micro_batches if isinstance(state, tuple) else 1)
    parts = [piece(whole, factors, layout, mesh, (number, *place)) for number in ways]
    if not isinstance(state, tuple) or len(parts) == 1:
        return parts[0]
    return join(torch.stack(parts), *along(factors, ("R", *layout[1:]), mesh, state))


def with_micro(table: Table) -> Mesh:
    """The grid, with micro-batches outside of everything."""
    return Mesh((Axis(MICRO, table.micro_batches), *table.mesh.axes))


def find(batch: Batch, tensor: BatchTensor) -> Any:
    """What lies at a tensor's path; None where there is nothing."""
    value: Any = batch
    for key in tensor.path:
        if isinstance(value, Tensor):
            return None
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def checked(value: Any, tensor: BatchTensor, table: Table) -> Tensor:
    where = _where(tensor.path)
    expected = tensor.type
    if not isinstance(value, Tensor):
        got = "nothing" if value is None else f"a {type(value).__name__}"
        raise MismatchError(
            f"{where}: the program takes a tensor {expected} there, the batch has {got}"
        )
    if tuple(value.shape) != expected.shape:
        local = local_type(expected, tensor.factors, ("R", *tensor.layout[1:]), with_micro(table))
        hint = "; this is one rank's piece" if tuple(value.shape) == local.shape else ""
        raise MismatchError(
            f"{where} is {list(value.shape)}{hint}; step takes the global batch "
            f"{list(expected.shape)} on every rank, of which each of the {table.mesh.size} ranks "
            f"works on {list(local.shape)}"
        )
    if value.is_floating_point() != expected.is_float:
        raise MismatchError(
            f"{where} has elements {value.dtype}, the program takes {expected.dtype}"
        )
    return value


def check_keys(batch: Batch, table: Table) -> None:
    """A tensor that the program does not read would be ignored silently: refuse it."""
    known = {t.path for t in table.batch}
    unknown = [path for path, _ in leaves(batch) if path not in known]
    if unknown:
        raise MismatchError(
            f"the batch has {_where(unknown[0])}, which the program was not compiled for; it takes "
            f"{', '.join(sorted(map(_where, known)))}"
        )


def _where(path: tuple[str | int, ...]) -> str:
    return "batch" + "".join(f"[{key!r}]" for key in path)
