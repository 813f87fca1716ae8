"""Matrix products."""

from __future__ import annotations

from ..model.loops import Loops, Site, declare, loops
from .pattern import aligned, dim_names, is_tensor, pattern, present

BOTH = ((0,), (1,))
# operators of torch's that refuse floating-point operands of two types, before they are decomposed
ONE_TYPE = frozenset(
    "mm bmm mv dot vdot addmm baddbmm addmv matmul linear bilinear conv1d conv2d conv3d convolution "
    "conv_transpose1d conv_transpose2d conv_transpose3d".split()
)


@declare("aten.mm.default")
def mm(site: Site) -> Loops:
    return loops("[m k], [k n] -> [m n]", site, linear=BOTH, work="gemm", flops=2)


@declare("aten.bmm.default")
def bmm(site: Site) -> Loops:
    return loops("[b m k], [b k n] -> [b m n]", site, linear=BOTH, work="gemm", flops=2)


@declare("aten.mv.default")
def mv(site: Site) -> Loops:
    return loops("[m k], [k] -> [m]", site, linear=BOTH, work="gemm", flops=2)


@declare("aten.dot.default", "aten.vdot.default")
def dot(site: Site) -> Loops:
    return loops("[k], [k] -> []", site, linear=BOTH, work="gemm", flops=2)


@declare("aten.outer.default")
def outer(site: Site) -> Loops:
    return loops("[m], [n] -> [m n]", site, linear=BOTH, work="pointwise", flops=1)


@declare("aten.addmm.default", "aten.baddbmm.default")
def addmm(site: Site) -> Loops | None:
    """`k` is whole: every shard would add the first operand once more."""
    (result,) = site.results
    if result is None:
        return None
    batch = ["b"] if len(result.shape) == 3 else []
    first = aligned(site.operands[0].shape, [*batch, "m", "n"])
    text = pattern([first, [*batch, "m", "k!"], [*batch, "k!", "n"]], [[*batch, "m", "n"]])
    return loops(text, site, linear=((0, 1), (0, 2)), work="gemm", flops=2)


@declare("aten.linear.default")
def linear(site: Site) -> Loops:
    """[.. k], [n k], [n]? -> [.. n]"""
    rows = dim_names(site.operands[0].shape[:-1])
    biased = is_tensor(site, 2)
    k = "k!" if biased else "k"
    out = [*rows, "n"] if len(site.operands[1].shape) == 2 else rows
    weight = ["n", k] if len(site.operands[1].shape) == 2 else [k]
    text = pattern(present(site, ([*rows, k], weight, ["n"])), [out])
    groups = ((0, 2), (1, 2)) if biased else BOTH
    return loops(text, site, linear=groups, work="gemm", flops=2)


@declare("aten.matmul.default")
def matmul(site: Site) -> Loops | None:
    """Matrix product with torch's broadcasting of leading dims and its vectors."""
    left, right = (operand.shape for operand in site.operands)
    (result,) = site.results
    if result is None or 0 in (len(left), len(right)):
        return None
    row = ["m"] if len(left) > 1 else []
    column = ["n"] if len(right) > 1 else []
    batch = dim_names(result.shape[: len(result.shape) - len(row) - len(column)])
    first = [*aligned(left[:-2], batch), *row, "k"]
    second = [*aligned(right[:-2], batch), "k", *column]
    text = pattern([first, second], [[*batch, *row, *column]])
    return loops(text, site, linear=BOTH, work="gemm", flops=2)


@declare("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")
def grouped_mm(site: Site) -> Loops | None:
    """Rows [r] are sorted by expert [e]; the third operand says where each expert's rows end.

    Two matrices make one product per expert, summed over its rows.
    """
    if len(site.operands) != 3:
        return None
    left, right, experts = site.operands
    if len(left.shape) == len(right.shape) == 2:
        text, count = "[m r!], [r! n], [e!] -> [e! m n]", experts.elements
    elif (len(left.shape), len(right.shape)) == (2, 3):
        text, count = "[r! k], [e! k n], [e!] -> [r! n]", experts.elements
    else:
        return None
    return loops(text, site, linear=BOTH, work="gemm", flops=2 / max(count, 1))


@declare("transformers.grouped_mm_fallback_backward.default")
def grouped_mm_backward(site: Site) -> Loops:
    """x, weight, offsets, gradient -> of x, of weight"""
    experts = site.operands[2].elements
    text = "[r! k], [e! k n], [e!], [r! n] -> [r! k], [e! k n]"
    return loops(text, site, linear=((3,),), work="gemm", flops=4 / max(experts, 1))
