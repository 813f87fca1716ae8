"""Puts compiled kernels in the place of reference kernels on the CPU, with the same bits.

They are built on first use, once for a user of a machine. Where there is no compiler, programs run the
reference, and say so.
"""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...ir.capture.operators import elementary
from ...ir.capture.operators.shard_offsets import merged_factors
from ..compression.backends.native import BuildError, build, cache_directory

SOURCE = Path(__file__).parent / "dropout.cpp"
TYPES = {torch.float32: "dropout_float32", torch.float64: "dropout_float64"}
_BITS = 1 << 53


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with a warning, where they cannot be compiled."""
    try:
        return ctypes.CDLL(str(build(SOURCE.read_text(), cache_directory())))
    except (BuildError, RuntimeError) as error:
        warnings.warn(
            f"dropout runs in torch, which takes several times as long: {error}", stacklevel=3
        )
        return None


def dropout_rows(
    x: Tensor, out: Tensor, key: Tensor, p: float, stream_id: int, index: list[int], *place: int
) -> None:
    """`plait::dropout_rows` on the CPU; `place`: number of the first element, step from row to row."""
    first, row_step = (*place, 0)[:2]
    compiled = library() if x.dtype in TYPES else None
    if compiled is None or not (x.is_contiguous() and out.is_contiguous()):
        elementary.reference_dropout_rows(x, out, key, p, stream_id, index, first, row_step)
        return
    seed, first_row = key.tolist()
    factors = merged_factors(index, first_row)
    stream = (ctypes.c_uint64 * 2)(elementary.stream_seed(seed, stream_id), int(p * _BITS))
    getattr(compiled, TYPES[x.dtype])(
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_void_p(out.data_ptr()),
        (ctypes.c_int64 * 2)(*x.shape),
        ctypes.c_int64(first),
        ctypes.c_int64(row_step),
        (ctypes.c_int64 * len(factors))(*factors),
        ctypes.c_int64(len(factors) // 3),
        stream,
        ctypes.c_double(0.0 if p >= 1.0 else 1.0 / (1.0 - p)),
    )


elementary.LIBRARY.impl("dropout_rows", dropout_rows, "CPU")
