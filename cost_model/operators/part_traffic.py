"""Memory traffic of operators that copy or add a part of a tensor, in place: products in slices."""

from __future__ import annotations

from ...ir.lowering.products.slices import ADD, PART, PLACE
from ...ir.model.loops import Site

PASSES = {PART: 2, PLACE: 2, ADD: 3}  # how often the part's bytes pass through memory


def part_traffic(site: Site) -> int:
    """Bytes that such an operator reads and writes; 0 for any other."""
    passes = PASSES.get(site.op.target, 0)
    types = [t for t in (*site.operands, *site.results) if t is not None]
    return passes * min(t.bytes for t in types) if passes else 0
