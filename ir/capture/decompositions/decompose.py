"""Decompose operators so that more of their loops can be split.

Autograd then derives decomposed backward operators too: a separate bias has a sum as gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...model.model import Argument, Op, Ref
from ...model.tensor import TensorType
from ...passes import Pass
from ..graph import FlatGraph, arguments
from ..passes.rewrite import (
    COPIES,
    ResultValues,
    Rewriter,
    RewriteRule,
    Rules,
    apply_rules,
    identity,
    rule,
)

DECOMPOSITIONS: Rules = {}
LOW = ("float16", "bfloat16")


class Decompose(Pass[FlatGraph, FlatGraph], frozen=True):
    """Replace operators by finer ones. Changes the graph."""

    name = "decompose"

    def apply(self, value: FlatGraph) -> FlatGraph:
        return apply_rules(value, DECOMPOSITIONS)


def decomposition(*targets: str) -> Callable[[RewriteRule], RewriteRule]:
    """Register a rule for these operators."""
    return rule(*targets, into=DECOMPOSITIONS)


decomposition(*COPIES)(
    identity
)  # patterns of several operators are found without copies in between


@decomposition("aten.linear.default")
def linear(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Add the bias separately, so that the product's reduction loop can be split."""
    bias = rewriter.operand(op, 2)
    if bias is None:
        return None
    type_ = rewriter.types[op.results[0]]
    (product,) = rewriter.emit(op.target, op.args[:2], type_)
    return rewriter.emit("aten.add.Tensor", (Ref(product), Ref(bias)), type_)


@decomposition(*(f"aten.conv{n}d.{kind}" for n in (1, 2, 3) for kind in ("default", "padding")))
def convolution(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Add the bias of a convolution, one element per channel, separately."""
    bias = rewriter.operand(op, 2)
    if bias is None:
        return None
    type_ = rewriter.types[op.results[0]]
    (product,) = rewriter.emit(op.target, (*op.args[:2], None, *op.args[3:]), type_)
    space = len(rewriter.types[rewriter.operand(op, 1) or 0].shape) - 2
    row = rewriter.reshaped(bias, (*rewriter.types[bias].shape, *(1,) * space))
    return rewriter.emit("aten.add.Tensor", (Ref(product), Ref(row)), type_)


@decomposition("aten.batch_norm.default")
def batch_norm_by_running_statistics(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, whose statistics are given: no operator
    couples samples. Low precisions are widened to float32, as torch does inside."""
    x, weight, bias, mean, variance = (rewriter.operand(op, n) for n in range(5))
    if op.args[5] is True or x is None or mean is None or variance is None:
        return None
    source, wide = rewriter.types[x], rewriter.types[mean].dtype
    if source.dtype not in LOW:
        wide = source.dtype
    type_ = TensorType(source.shape, wide)
    rows = TensorType((1, source.shape[1], *(1,) * (len(source.shape) - 2)), wide)

    def cast(value: int, target: TensorType) -> Ref:
        if rewriter.types[value].dtype == target.dtype:
            return Ref(value)
        dtype: dict[str, Argument] = {"dtype": f"dtype:{target.dtype}"}
        of_type = TensorType(rewriter.types[value].shape, target.dtype)
        return Ref(rewriter.emit("aten._to_copy.default", (Ref(value),), of_type, kwargs=dtype)[0])

    def row(value: int) -> Ref:
        return Ref(rewriter.reshaped(cast(value, rows).value, rows.shape))

    def step(target: str, *args: Argument, of: TensorType = type_) -> Ref:
        return Ref(rewriter.emit(target, args, of)[0])

    above = step("aten.add.Scalar", row(variance), op.args[7], of=rows)
    inverse = step("aten.rsqrt.default", above, of=rows)
    result = step("aten.sub.Tensor", cast(x, type_), row(mean))
    result = step("aten.mul.Tensor", result, inverse)
    if weight is not None:
        result = step("aten.mul.Tensor", result, row(weight))
    if bias is not None:
        result = step("aten.add.Tensor", result, row(bias))
    return (cast(result.value, source).value,)


@decomposition("aten.addmm.default", "aten.baddbmm.default")
def addmm(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """beta * added + alpha * (x @ y), one operator each."""
    added, product = rewriter.operand(op, 0), op.args[1:3]
    type_ = rewriter.types[op.results[0]]
    alpha, beta = (op.kwargs.get(name, 1) for name in ("alpha", "beta"))
    target = "aten.mm.default" if op.target == "aten.addmm.default" else "aten.bmm.default"
    (result,) = rewriter.emit(target, product, type_)
    assert added is not None
    if alpha != 1:
        (result,) = rewriter.emit("aten.mul.Scalar", (Ref(result), alpha), type_)
    if beta != 1:
        (added,) = rewriter.emit("aten.mul.Scalar", (Ref(added), beta), rewriter.types[added])
    return rewriter.emit("aten.add.Tensor", (Ref(result), Ref(added)), type_)


@decomposition("aten.add.Tensor", "aten.sub.Tensor", "aten.rsub.Scalar")
def shifted_number(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """A number plus or minus a literal, as a tensor: each rank adds its share to a partial sum. Zero
    minus it is its negative."""
    type_ = rewriter.types[op.results[0]]
    x, literal = op.args[0], op.args[1]
    plain = isinstance(x, Ref) and rewriter.types[x.value] == type_ and not op.kwargs
    if plain and "rsub" in op.target and literal == 0 and len(op.args) == 2:
        return rewriter.emit("aten.neg.default", (x,), type_)
    if type_.shape or not type_.is_float or not plain or len(op.args) > 2:
        return None
    if not isinstance(literal, int | float) or literal == 0:
        return None
    (constant,) = rewriter.emit(
        "aten.full.default", ((), literal), type_, kwargs={"dtype": f"dtype:{type_.dtype}"}
    )
    terms = (x, Ref(constant)) if "rsub" not in op.target else (Ref(constant), x)
    target = "aten.add.Tensor" if "add" in op.target else "aten.sub.Tensor"
    return rewriter.emit(target, terms, type_)


@decomposition("aten.slice_scatter.default")
def complex_slice_scatter(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """What stands before a slice, its new elements, and what stands behind: torch has no gradient of
    slice_scatter for complex numbers."""
    type_ = rewriter.types[op.results[0]]
    x, source, dim, first, last, step = arguments(op, None, None, 0, None, None, 1)
    if not type_.dtype.startswith("complex") or step != 1:
        return None
    assert isinstance(x, Ref)
    assert isinstance(dim, int)
    dim %= len(type_.shape)
    size = type_.shape[dim]
    start, end = (
        min(max(p + size if p < 0 else p, 0), size) if isinstance(p, int) else absent
        for p, absent in ((first, 0), (last, size))
    )
    parts: list[Argument] = [source]
    for place, (low, high) in ((0, (0, start)), (len(parts) + 1, (max(start, end), size))):
        if low < high:
            shape = (*type_.shape[:dim], high - low, *type_.shape[dim + 1 :])
            kind = TensorType(shape, type_.dtype)
            parts.insert(place, rewriter.make("slice.Tensor", kind, x, dim, low, high))
    return (rewriter.make("cat.default", type_, tuple(parts), dim).value,)


@decomposition("aten.log_sigmoid.default")
def log_sigmoid(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """min(x, 0) - log(1 + exp(-|x|)); torch's operator saves a device-dependent buffer."""
    (x,), type_ = op.operands(), rewriter.types[op.results[0]]

    def emit(name: str, *args: Argument) -> Ref:
        return Ref(rewriter.emit(f"aten.{name}", args, type_)[0])

    distance = emit("abs.default", Ref(x))
    least = emit("mul.Scalar", emit("sub.Tensor", Ref(x), distance), 0.5)
    rest = emit("log1p.default", emit("exp.default", emit("neg.default", distance)))
    return (emit("sub.Tensor", least, rest).value,)


# losses of single elements -> position of their reduction
# fmt: off
LOSSES = {
    "aten.mse_loss.default": 2, "aten.smooth_l1_loss.default": 2, "aten.huber_loss.default": 2,
    "aten.soft_margin_loss.default": 2, "aten.binary_cross_entropy.default": 3,
    "aten.binary_cross_entropy_with_logits.default": 4,
}
# fmt: on
TOTALS = {1: "aten.mean.default", 2: "aten.sum.default"}


@decomposition(*LOSSES)
def elementwise_loss(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Elementwise losses, then their mean or sum, so that no gradient counts elements."""
    place = LOSSES[op.target]
    args = arguments(op, *(None,) * place, 1)
    reduction, type_ = args[place], rewriter.types[op.results[0]]
    if not isinstance(reduction, int) or reduction not in TOTALS or op.kwargs:
        return None
    shapes = (rewriter.types[v].shape for v in op.operands())
    kind = TensorType(torch.broadcast_shapes(*shapes), type_.dtype)
    (losses,) = rewriter.emit(op.target, (*args[:place], 0, *args[place + 1 :]), kind)
    return rewriter.emit(TOTALS[reduction], (Ref(losses),), type_)


@decomposition("aten.index_put.default")
def masked_assignment(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """x[mask] = number as `where(mask, number, x)`."""
    x, indices = rewriter.operand(op, 0), op.args[1]
    if x is None or not isinstance(indices, tuple) or len(indices) != 1 or len(op.operands()) != 3:
        return None
    _, mask, value = op.operands()
    type_, kind = rewriter.types[x], rewriter.types[mask]
    accumulate = len(op.args) > 3 and op.args[3] is True
    if kind.dtype != "bool" or rewriter.types[value].shape or accumulate:
        return None
    shape = (*kind.shape, *(1,) * (len(type_.shape) - len(kind.shape)))
    condition = Ref(rewriter.reshaped(mask, shape))
    return rewriter.emit("aten.where.self", (condition, Ref(value), Ref(x)), type_)


@decomposition("aten.index.Tensor")
def index_per_row(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """x[arange(n), columns] as a gather along dimension 1."""
    x, indices = op.operands()[0], op.args[1]
    shape = rewriter.types[x].shape
    if not isinstance(indices, tuple) or len(indices) != 2 or len(op.operands()) != 3:
        return None
    rows, places = op.operands()[1:]
    counted = rewriter.made_by.get(rows)
    counts = counted is not None and counted.target == "aten.arange.default"
    if not counts or not all(rewriter.types[v].shape == shape[:1] for v in (rows, places)):
        return None
    kind, type_ = rewriter.types[places], rewriter.types[op.results[0]]
    (places,) = rewriter.emit("aten.remainder.Scalar", (Ref(places), shape[1]), kind)
    column = Ref(rewriter.reshaped(places, (shape[0], *(1,) * (len(shape) - 1))))
    wide = TensorType((shape[0], 1, *shape[2:]), kind.dtype)
    (index,) = rewriter.emit("aten.expand.default", (column, wide.shape), wide)
    gathered = TensorType(wide.shape, type_.dtype)
    (result,) = rewriter.emit("aten.gather.default", (Ref(x), 1, Ref(index)), gathered)
    return (rewriter.reshaped(result, type_.shape),)


@decomposition("aten.adaptive_avg_pool1d.default", "aten.adaptive_avg_pool2d.default")
def pool_to_one(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Pooling to size 1 as a mean."""
    size = op.args[1]
    assert isinstance(size, tuple)
    if set(size) != {1}:
        return None
    over = tuple(range(-len(size), 0))
    return rewriter.emit("aten.mean.dim", (op.args[0], over, True), rewriter.types[op.results[0]])


@decomposition("aten.glu.default")
def gated_linear_unit(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """The first half of a dim times the sigmoid of the second."""
    x, type_ = op.operands()[0], rewriter.types[op.results[0]]
    dim = arguments(op, None, -1)[1]
    assert isinstance(dim, int)
    dim %= len(type_.shape)
    size = type_.shape[dim]
    value, gate = (
        rewriter.make("slice.Tensor", type_, Ref(x), dim, start, start + size)
        for start in (0, size)
    )
    share = rewriter.make("sigmoid.default", type_, gate)
    return (rewriter.make("mul.Tensor", type_, value, share).value,)
