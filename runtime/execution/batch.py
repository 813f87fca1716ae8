"""Takes one rank's shard of the global batch that the user passes to a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from ...ir.capture.batch import constants, leaves
from ...ir.errors import MismatchError
from ...ir.model.layout import local_type, shard_position
from ...ir.model.mesh import MICRO, Axis, Mesh
from ...ir.plan.program import BatchTensor, ProgramTable
from ..comm.slicing import join, local_shard, take_slice

Batch = Tensor | Mapping[str, Any] | tuple[Any, ...] | list[Any]


def local_batch(
    batch: Batch, table: ProgramTable, rank: int, names: tuple[str, ...], device: torch.device
) -> list[Tensor]:
    """This rank's shards of the tensors `names`, in order.

    The global batch is checked first, so that every rank refuses a wrong one in the same way. Raises
    MismatchError naming the tensor with its global and local size.
    """
    check_keys(batch, table)
    values = {t.name: checked(find(batch, t.path), t, table) for t in table.batch}
    check_constants(batch, table)
    declared = {t.name: t for t in table.batch}
    shards = []
    for name in names:
        tensor = declared[name]
        shard = micro_batch_shards(values[name], tensor, table, rank)
        shards.append(shard.to(device=device, dtype=getattr(torch, tensor.type.dtype)))
    return shards


def micro_batch_shards(full: Tensor, tensor: BatchTensor, table: ProgramTable, rank: int) -> Tensor:
    """This rank's shards of all micro-batches, concatenated in order."""
    mesh, coordinate = micro_batch_mesh(table), table.mesh.coordinate(rank)
    state, factors, layout = tensor.layout[0], tensor.factors, tensor.layout
    numbers = range(table.micro_batches if isinstance(state, tuple) else 1)
    shards = [local_shard(full, factors, layout, mesh, (number, *coordinate)) for number in numbers]
    if not isinstance(state, tuple) or len(shards) == 1:
        return shards[0]
    return join(torch.stack(shards), *shard_position(factors, ("R", *layout[1:]), mesh, state))


def micro_batch_values(
    batch_only: tuple[Tensor, ...], stage: Any, table: ProgramTable, number: int
) -> list[Tensor]:
    """Slices of one micro-batch from the results of a stage's `batch_only`."""
    return [
        value if dim is None else take_slice(value, table.micro_batches, number, *dim)
        for value, dim in zip(batch_only, stage.MICRO_BATCH_DIMS, strict=True)
    ]


def micro_batch_mesh(table: ProgramTable) -> Mesh:
    """The grid with an outermost axis of micro-batches."""
    return Mesh((Axis(MICRO, table.micro_batches), *table.mesh.axes))


def find(batch: Batch, path: tuple[str | int, ...]) -> Any:
    """The value of the batch at a path; None where there is none."""
    value: Any = batch
    for key in path:
        if isinstance(value, Tensor):
            return None
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def checked(value: Any, tensor: BatchTensor, table: ProgramTable) -> Tensor:
    """The value itself. Raises MismatchError unless it is a tensor of the declared shape and kind."""
    where = path_text(tensor.path)
    expected = tensor.type
    if not isinstance(value, Tensor):
        got = "nothing" if value is None else f"a {type(value).__name__}"
        raise MismatchError(
            f"{where}: the program takes a tensor {expected} there, the batch has {got}"
        )
    if tuple(value.shape) != expected.shape:
        local = local_type(
            expected, tensor.factors, ("R", *tensor.layout[1:]), micro_batch_mesh(table)
        )
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


def check_keys(batch: Batch, table: ProgramTable) -> None:
    """Raise MismatchError for a tensor that the program does not read: it would be ignored."""
    known = {t.path for t in table.batch}
    unknown = [path for path, _ in leaves(batch) if path not in known]
    if unknown:
        raise MismatchError(
            f"the batch has {path_text(unknown[0])}, which the program was not compiled for; it takes "
            f"{', '.join(sorted(map(path_text, known)))}"
        )


def check_constants(batch: Batch, table: ProgramTable) -> None:
    """Raise MismatchError for a number, text or flag other than the traced one, which is a constant."""
    texts = {c.path: c.text for c in constants(batch)}
    known = {c.path: c.text for c in table.constants}
    for path in (*known, *(p for p in texts if p not in known)):
        if texts.get(path) != known.get(path):
            raise MismatchError(
                f"{path_text(path)} is {texts.get(path, 'not there')}; the program was compiled with "
                f"{known.get(path, 'nothing there')}, which it has as a constant. Pass what changes "
                "from step to step as a tensor"
            )


def batch_checksum(batch: Batch) -> int:
    """A checksum of the values of all tensors of a batch."""
    checksum = 0
    for path, tensor in leaves(batch):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        checksum = crc32(data, crc32(repr((path, tuple(tensor.shape))).encode(), checksum))
    return checksum


def path_text(path: tuple[str | int, ...]) -> str:
    """`batch["x"][0]` for a path."""
    return "batch" + "".join(f"[{key!r}]" for key in path)
