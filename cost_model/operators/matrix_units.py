"""Which products matrix units compute."""

from __future__ import annotations

from ...ir.model.loops import Site
from ...ir.model.tensor import ITEM_BYTES

# Bytes that rows of a product are a multiple of where matrix units compute it (NVIDIA, Matrix
# Multiplication Background User's Guide)
ALIGNED_BYTES = 16


def is_aligned(site: Site, dtype: str) -> bool:
    """Whether matrix units compute a product. Of weights, rows are padded; of activations alone, as of
    every head's scores where they are written, they are as wide as a head."""
    if len(site.operands) < 2 or any(len(operand.shape) < 3 for operand in site.operands):
        return True
    rows = {size for operand in site.operands for size in operand.shape[-2:]}
    return all(size * ITEM_BYTES[dtype] % ALIGNED_BYTES == 0 for size in rows)
