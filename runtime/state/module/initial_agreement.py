"""Makes all ranks begin with the values of rank 0, as DDP does.

Ranks may have built the module under different seeds, or with values on rank 0 alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from ....ir.plan.program import ParameterSpec
from ...comm.program_groups import MeshGroups
from ...torch_private import is_fake
from ..initialization import InitialValues

ROWS = 8


def agree(
    initial: InitialValues,
    specs: Mapping[str, ParameterSpec],
    groups: MeshGroups,
    device: torch.device,
) -> None:
    """Replace initial values by rank 0's where any rank has others; all ranks together.

    Nothing is sent but checksums where they agree. A rank keeps rank 0's tensors of its own stage.
    """
    everyone = groups.everyone
    if everyone.size == 1:
        return
    named = [name for name, spec in specs.items() if name in initial.tensors]
    checksums = [
        _checksum(initial.tensors[name].detach(), whole=name not in initial.loaded)
        for name in named
    ]
    checked = dict(zip(named, checksums, strict=True))
    by_rank: list[dict[str, Any]] = everyone.gather_objects(checked, "checksums of first values")
    for name, checksum in by_rank[0].items():
        if all(other.get(name, "absent") == checksum for other in by_rank):
            continue
        spec = specs[name]
        dtype = "float32" if spec.type.is_half else spec.type.dtype  # exact, for master weights
        if everyone.rank == 0:
            value = initial.value(name, spec, dtype).to(device).contiguous()
        else:
            value = torch.empty(spec.type.shape, dtype=getattr(torch, dtype), device=device)
        everyone.broadcast(value, 0)
        if groups.stage in spec.stages:
            initial.tensors[name] = value


def _checksum(tensor: Tensor, *, whole: bool) -> tuple[int, tuple[int, ...]] | None:
    """Checksum and shape of a tensor's values; None where it has none yet. Of a file's tensors only
    the first rows are looked at, so that no rank reads all of it."""
    if is_fake(tensor):
        return None
    looked_at = tensor if whole or not tensor.dim() else tensor[:ROWS]
    flat = looked_at.cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return crc32(data), tuple(tensor.shape)
