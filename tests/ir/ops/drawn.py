"""Random arguments of samples, the same in every run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plait.tests.ir.ops.shards import Sample

_GENERATOR = torch.Generator().manual_seed(0)
F64, F32 = torch.float64, torch.float32


def real(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=_GENERATOR, dtype=dtype)


def below(limit: int, *shape: int) -> Tensor:
    return torch.randint(limit, shape, generator=_GENERATOR)


def small(*shape: int) -> Tensor:
    """Whole numbers that bfloat16 adds up exactly."""
    return torch.randint(-2, 3, shape, generator=_GENERATOR).bfloat16()


def of(name: str, *args: Any, unused: tuple[int, ...] = (), **kwargs: Any) -> Sample:
    target = name if name.count(".") == 2 else f"aten.{name}"
    return Sample(target if target.count(".") == 2 else f"{target}.default", args, kwargs, unused)
