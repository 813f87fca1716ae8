"""Operators whose kernels read memory as if it had no gaps; some say nothing where it has.

Gaps come from layouts that eager code does not have: a shard of channels, a gradient that is one
number, statistics that are a slice, memory with channels last.
"""

from __future__ import annotations

from ..model.model import Op

# target -> positions among its tensors that must be contiguous; none: all of them
_POSITIONS: dict[str, tuple[int, ...]] = {
    "aten.native_group_norm.default": (),
    "aten.native_group_norm_backward.default": (),
    "aten.native_layer_norm_backward.default": (2, 3),  # the statistics
    "aten.native_batch_norm_backward.default": (2, 3, 4, 5, 6),  # all but gradient and x
    "aten._weight_norm_interface.default": (),
    "aten._weight_norm_interface_backward.default": (),
    "aten.adaptive_max_pool3d_backward.default": (2,),  # the indices
    "aten.nll_loss2d_backward.default": (1,),
    "aten.view_as_complex.default": (),
    "aten._grouped_mm.default": (),
}


def contiguous_operands(op: Op) -> frozenset[int]:
    """The values that an operator must read without gaps."""
    positions = _POSITIONS.get(op.target)
    if positions is None:
        return frozenset()
    operands = op.operands()
    return frozenset(operands[p] for p in positions or range(len(operands)) if p < len(operands))
