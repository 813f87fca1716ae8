"""What forward saves where kernels of backward compute cheap values again, as they read their operands.

saved by single operators   x, gate, up, silu(gate), silu(gate) * up
saved beside fusion         x, gate, up
"""

from __future__ import annotations

from ..analysis.liveness import produced_values
from ..model.loops import declaration, site_of
from ..model.model import Function, Op
from .forward_backward import partition

FUSED = ("pointwise", "view")  # kinds of work that a fused kernel does while it reads operands
LIBRARY = "aten."  # operators that a compiler fuses; those of ours are kernels of their own


def saved_beside_fusion(function: Function) -> tuple[int, ...]:
    """The values that forward saves under `keep`, without those that pointwise operators compute from
    others of them and from weights: never more bytes."""
    keep = set(partition(function, "keep").saved)
    states = {item.value for item in function.state_inputs()}
    known = states | keep - produced_values(function.forward_ops)
    saved: list[int] = []
    for op in function.forward_ops:
        if _fuses(function, op) and known.issuperset(op.operands()):
            known.update(op.results)
        else:
            saved += keep.intersection(op.results)
            known |= keep.intersection(op.results)
    return tuple(sorted(saved))


def _fuses(function: Function, op: Op) -> bool:
    """Whether a compiler computes an operator inside the kernel that reads its result."""
    declared = declaration(site_of(op, function.types))
    return op.target.startswith(LIBRARY) and declared is not None and declared.work in FUSED
