"""Batches of ranks: whether all have the same one, and one put together from their own parts."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ir.capture.batch import BatchPath, batch_size, leaves, rebuild
from ...ir.errors import MismatchError, UsageError
from ..comm.process_group import Group
from .batch import Batch, batch_checksum


def check_same_batch(batch: Batch, everyone: Group) -> None:
    """Raise MismatchError, on every rank, naming a rank whose batch is not that of rank 0."""
    rows = everyone.gather_objects(
        (_shapes(batch), batch_checksum(batch)), "batches of a new shape"
    )
    for rank, (shapes, checksum) in enumerate(rows):
        if (shapes, checksum) != rows[0]:
            raise MismatchError(
                f"rank {rank} has another batch ({shapes}, checksum {checksum:08x}) than rank 0 "
                f"({rows[0][0]}, {rows[0][1]:08x}): every rank gives the same global batch (seed all "
                "samplers alike and give them no rank), or its own part of it with inputs='local'"
            )


def _shapes(batch: Batch) -> str:
    return ", ".join(str(list(tensor.shape)) for _, tensor in leaves(batch))


def global_batch(
    batch: Batch, divided: frozenset[BatchPath], everyone: Group, device: torch.device
) -> Batch:
    """The global batch from every rank's own part, samples in the order of the ranks.

    The tensors at the paths of `divided` have their samples in dimension 0; others are the same on
    every rank.
    """
    parts = dict(leaves(batch))

    def gathered(path: BatchPath) -> Tensor:
        if path not in divided:
            return parts[path]
        return everyone.all_gather(parts[path].to(device).contiguous()).flatten(0, 1)

    return rebuild(batch, gathered)


def divided_paths(batch: Batch) -> frozenset[BatchPath]:
    """The tensors of a batch that have its samples in dimension 0."""
    tensors = leaves(batch)
    size = batch_size([t for _, t in tensors])
    return frozenset(path for path, t in tensors if t.dim() and t.shape[0] == size)


def refuse_autocast(device: torch.device) -> None:
    """Raise UsageError under `torch.autocast`, which would change the types inside a program."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        raise UsageError(
            "torch.autocast is on around the program, whose types are those of its plan: leave it out, "
            "and plan with precision='bf16'"
        )
