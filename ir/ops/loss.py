"""Losses over classes: rows are independent, classes are joined or whole; and losses of single
elements."""

from __future__ import annotations

from ..model.loops import LoopKind, Loops, OperatorCollective, Site, declare, loops
from ..model.tensor import ITEM_BYTES
from .pattern import DimNames, aligned, dim_names, integer, joint, pattern, present

NONE, MEAN, SUM = 0, 1, 2
ROW_BYTES = 48  # labels and masks that a loss makes of a row

CROSS_ENTROPY = "plait.cross_entropy.default"
CLASS_LOOP = "v"
CLASSES = ((CLASS_LOOP,),)


@declare(CROSS_ENTROPY, shard_aware=True)
def cross_entropy(site: Site) -> Loops:
    """logits, labels, ignored label, classes -> losses, logsumexp

    Split over the classes, ranks join each row's maximum, sum and picked score (Megatron-LM)."""
    text = "[n v], [n] -> [n], [n]"
    joined = (OperatorCollective("all_reduce", (("n",),), 4, 3),)
    return loops(
        text,
        site,
        kinds={"v": "joint"},
        work="reduce",
        flops=5,
        shard_offsets=((3, CLASSES),),
        exchanges=joined,
    )


@declare("plait.cross_entropy_backward.default", shard_aware=True)
def cross_entropy_backward(site: Site) -> Loops:
    """gradient, logits, labels, logsumexp, ignored label, classes -> of logits"""
    text = "[n], [n v], [n], [n] -> [n v]"
    return loops(text, site, linear=((0,),), work="reduce", flops=5, shard_offsets=((5, CLASSES),))


def _rows(shape: tuple[int, ...], whole: bool) -> tuple[DimNames, DimNames]:
    """Words of the scores [n v ..] and of the labels [n ..]."""
    n, *space = dim_names((shape[0], *shape[2:]), "n", whole=range(9) if whole else ())
    return [n, "v!", *space], [n, *space]


@declare("aten.nll_loss_forward.default", "aten.nll_loss2d_forward.default")
def nll_loss(site: Site) -> Loops | None:
    """scores, labels, weight?, reduction -> loss, total weight"""
    if len(site.operands[0].shape) < 2:
        return None
    reduction = integer(site, 3, MEAN)
    scores, labels = _rows(site.operands[0].shape, whole=reduction != SUM)
    inputs = present(site, (scores, labels, ["v!"]))
    loss = labels if reduction == NONE else []
    return loops(pattern(inputs, [loss, []]), site, work="reduce", flops=1)


@declare("aten.nll_loss_backward.default", "aten.nll_loss2d_backward.default")
def nll_loss_backward(site: Site) -> Loops | None:
    """gradient, scores, labels, weight?, reduction, ignored label, total weight -> of scores"""
    if len(site.operands[1].shape) < 2:
        return None
    scores, labels = _rows(site.operands[1].shape, whole=False)
    upper = labels if integer(site, 4, MEAN) == NONE else []
    inputs = present(site, (upper, scores, labels, ["v!"], None, None, []))
    return loops(pattern(inputs, [scores]), site, linear=((0,),), work="move", flops=1)


# Losses of single elements -> position of the reduction; backward has the gradient in front.
ELEMENTWISE: dict[str, int] = {
    "aten.mse_loss.default": 2,
    "aten.smooth_l1_loss.default": 2,
    "aten.huber_loss.default": 2,
    "aten.soft_margin_loss.default": 2,
    "aten.binary_cross_entropy.default": 3,
    "aten.binary_cross_entropy_with_logits.default": 4,
}
ELEMENTWISE_BACKWARD: dict[str, int] = {
    "aten.mse_loss_backward.default": 3,
    "aten.smooth_l1_loss_backward.default": 3,
    "aten.huber_loss_backward.default": 3,
    "aten.soft_margin_loss_backward.default": 3,
    "aten.binary_cross_entropy_backward.default": 4,
}


@declare(*ELEMENTWISE)
def elementwise(site: Site) -> Loops | None:
    """x, targets (, weights) -> losses, or their mean or sum"""
    reduction = integer(site, ELEMENTWISE[site.op.target], MEAN)
    sizes = joint(operand.shape for operand in site.operands)
    full = dim_names(sizes)
    kind: LoopKind = "mean" if reduction == MEAN else "split"
    kinds: dict[str, LoopKind] = {dim_name: kind for dim_name in full if dim_name != "1"}
    text = pattern(
        (aligned(operand.shape, full) for operand in site.operands),
        [full if reduction == NONE else []],
    )
    return loops(text, site, kinds=kinds, work="pointwise" if reduction == NONE else "reduce")


@declare(*ELEMENTWISE_BACKWARD)
def elementwise_backward(site: Site) -> Loops | None:
    """gradient, x, targets (, weights) -> of x; a mean counts the elements, so it is whole"""
    reduction = integer(site, ELEMENTWISE_BACKWARD[site.op.target], MEAN)
    full = dim_names(
        joint(o.shape for o in site.operands), whole=range(99) if reduction == MEAN else ()
    )
    text = pattern((aligned(operand.shape, full) for operand in site.operands), [full])
    return loops(text, site, linear=((0,),))


def working_bytes(site: Site, block_elements: int) -> int:
    """Bytes that the loss works on beside its operands and results: a block of logits, widened, and a
    few numbers of every row (see `ir/capture/operators/elementary`)."""
    backward = "backward" in site.op.target
    logits = site.operands[int(backward)]
    rows, classes = logits.shape
    item_bytes = ITEM_BYTES[logits.dtype]
    block = max(block_elements // max(classes, 1), 1) * classes
    copies = 0 if backward and item_bytes >= 4 else 1 + (item_bytes < 4)
    return copies * max(4, item_bytes) * min(rows * classes, block) + ROW_BYTES * rows
