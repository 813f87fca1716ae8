"""Losses over classes as losses of rows, their sum, and a divisor that depends on labels alone.

The divisor (how many labels count, or the sum of their weights) is then computed once per step over
the global batch, so that micro-batches and devices only add up.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ...model.model import Argument, Op, Ref
from ...model.tensor import TensorType
from ..graph import arguments
from .rewrite import ResultValues, Rewriter, rule

MEAN, SUM = 1, 2


class _Rows(NamedTuple):
    """Scores [rows, classes], labels [rows], weights [classes] or None, and what is ignored."""

    scores: Ref
    labels: Ref
    weights: int | None
    ignored: Argument


class _Emitter:
    """Operators on rows of one element type."""

    def __init__(self, rewriter: Rewriter, dtype: str) -> None:
        self.rewriter, self.dtype = rewriter, dtype

    def one(
        self, target: str, args: tuple[Argument, ...], shape: tuple[int, ...], dtype: str = ""
    ) -> Ref:
        type_ = TensorType(shape, dtype or self.dtype)
        return Ref(self.rewriter.emit(f"aten.{target}", args, type_)[0])


@rule("aten.cross_entropy_loss.default")
def cross_entropy(rewriter: Rewriter, op: Op) -> ResultValues | None:
    defaults = (None, None, None, 1, -100, 0.0)
    scores, labels, weights, reduction, ignored, smoothing = arguments(op, *defaults)
    assert isinstance(scores, Ref)
    assert isinstance(labels, Ref)
    kind, type_ = rewriter.types[labels.value], rewriter.types[scores.value]
    shaped = len(type_.shape) >= 2 and len(kind.shape) == len(type_.shape) - 1
    if op.kwargs or not shaped or kind.dtype != "int64":
        return None
    count, classes = prod(kind.shape), list(type_.shape)[1]
    rows = _rows(rewriter, scores, labels, weights, ignored)
    emitter = _Emitter(rewriter, type_.dtype)
    losses = _picked(emitter, rows, count)
    if smoothing:
        assert isinstance(smoothing, float)
        smooth = _smooth(emitter, rows, count, classes)
        one = emitter.one("mul.Scalar", (losses, 1.0 - smoothing), (count,))
        other = emitter.one("mul.Scalar", (smooth, smoothing / classes), (count,))
        losses = emitter.one("add.Tensor", (one, other), (count,))
    return (_reduced(emitter, rows, losses, reduction, kind.shape),)


@rule("aten.nll_loss_nd.default", "aten.nll_loss.default")
def nll_loss(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """The same for log-probabilities."""
    scores, labels, weights, reduction, ignored = arguments(op, None, None, None, 1, -100)
    assert isinstance(scores, Ref)
    assert isinstance(labels, Ref)
    kind, type_ = rewriter.types[labels.value], rewriter.types[scores.value]
    if op.kwargs or len(type_.shape) < 2 or len(kind.shape) != len(type_.shape) - 1:
        return None
    count = prod(kind.shape)
    rows = _rows(rewriter, scores, labels, weights, ignored)
    emitter = _Emitter(rewriter, type_.dtype)
    column = Ref(rewriter.reshaped(_safe(emitter, rows, count).value, (count, 1)))
    picked = emitter.one("gather.default", (rows.scores, 1, column), (count, 1))
    losses = emitter.one("neg.default", (Ref(rewriter.reshaped(picked.value, (count,))),), (count,))
    losses = _weighted(emitter, rows, losses, count)
    return (_reduced(emitter, rows, losses, reduction, kind.shape),)


def _rows(
    rewriter: Rewriter, scores: Ref, labels: Ref, weights: Argument, ignored: Argument
) -> _Rows:
    """Scores [n, classes, …] and labels [n, …] as rows."""
    count = prod(rewriter.types[labels.value].shape)
    classes = rewriter.types[scores.value].shape[1]
    flat = Ref(rewriter.reshaped(_classes_last(rewriter, scores.value), (count, classes)))
    flat_labels = Ref(rewriter.reshaped(labels.value, (count,)))
    return _Rows(flat, flat_labels, weights.value if isinstance(weights, Ref) else None, ignored)


def _picked(emitter: _Emitter, rows: _Rows, count: int) -> Ref:
    """The cross entropy of every row, times the weight of its label; 0 for ignored ones."""
    dtype = emitter.dtype
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype
    losses, _ = emitter.rewriter.emit(
        "plait.cross_entropy.default",
        (rows.scores, rows.labels, rows.ignored, ()),
        TensorType((count,), dtype),
        TensorType((count,), wide),
    )
    return Ref(losses) if rows.weights is None else _weighted(emitter, rows, Ref(losses), count)


def _weighted(emitter: _Emitter, rows: _Rows, losses: Ref, count: int) -> Ref:
    """Losses of rows times the weights of their labels; 0 for ignored ones."""
    if rows.weights is None:
        args = (_valid(emitter, rows, count), losses, 0.0)
        return emitter.one("where.ScalarOther", args, (count,))
    return emitter.one("mul.Tensor", (losses, _row_weights(emitter, rows, count)), (count,))


def _row_weights(emitter: _Emitter, rows: _Rows, count: int) -> Ref:
    """The weight of every row's label, 0 where it is ignored."""
    assert rows.weights is not None
    dtype = emitter.rewriter.types[rows.weights].dtype
    safe = _safe(emitter, rows, count)
    found = emitter.one("gather.default", (Ref(rows.weights), 0, safe), (count,), dtype)
    args = (_valid(emitter, rows, count), found, 0.0)
    return emitter.one("where.ScalarOther", args, (count,), dtype)


def _valid(emitter: _Emitter, rows: _Rows, count: int) -> Ref:
    return emitter.one("ne.Scalar", (rows.labels, rows.ignored), (count,), "bool")


def _safe(emitter: _Emitter, rows: _Rows, count: int) -> Ref:
    """Labels with 0 in place of what is ignored."""
    args = (_valid(emitter, rows, count), rows.labels, 0)
    return emitter.one("where.ScalarOther", args, (count,), "int64")


def _smooth(emitter: _Emitter, rows: _Rows, count: int, classes: int) -> Ref:
    """The sum over classes of weight x -log probability, 0 for ignored rows."""
    both = (count, classes)
    logs = emitter.one("log_softmax.int", (rows.scores, 1), both)
    if rows.weights is not None:
        row = Ref(emitter.rewriter.reshaped(rows.weights, (1, classes)))
        logs = emitter.one("mul.Tensor", (logs, row), both)
    total = emitter.one("sum.dim_IntList", (logs, (1,)), (count,))
    args = (_valid(emitter, rows, count), emitter.one("neg.default", (total,), (count,)), 0.0)
    return emitter.one("where.ScalarOther", args, (count,))


def _reduced(
    emitter: _Emitter, rows: _Rows, losses: Ref, reduction: Argument, shape: tuple[int, ...]
) -> int:
    if reduction not in (MEAN, SUM):
        return emitter.rewriter.reshaped(losses.value, shape)
    total = emitter.one("sum.default", (losses,), ())
    if reduction == SUM:
        return total.value
    count = prod(shape)
    if rows.weights is None:
        divisor = emitter.one("sum.default", (_valid(emitter, rows, count),), (), "int64")
    else:
        weights = _row_weights(emitter, rows, count)
        divisor = emitter.one(
            "sum.default", (weights,), (), emitter.rewriter.types[weights.value].dtype
        )
    return emitter.one("div.Tensor", (total, divisor), ()).value


def _classes_last(rewriter: Rewriter, logits: int) -> int:
    """Scores `[n, classes, …]` as `[n, …, classes]`: as they were, where they were only turned round."""
    type_, rank = rewriter.types[logits], len(rewriter.types[logits].shape)
    if rank == 2:
        return logits
    maker = rewriter.made_by.get(logits)
    if maker is not None and maker.target == "aten.transpose.int" and rank == 3:
        if {int(d) % rank for d in maker.args[1:]} == {1, 2}:  # type: ignore[arg-type]
            return maker.operands()[0]
    order = (0, *range(2, rank), 1)
    turned = TensorType(tuple(type_.shape[d] for d in order), type_.dtype)
    (moved,) = rewriter.emit("aten.permute.default", (Ref(logits), order), turned)
    return rewriter.emit(
        "aten.clone.default",
        (Ref(moved),),
        turned,
        kwargs={"memory_format": "memory_format:contiguous_format"},
    )[0]
