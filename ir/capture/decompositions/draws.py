"""Random operators as functions of uniform numbers, one for every element that torch would draw.

What each draws is said once, in terms of u in (0, 1), which depends on an element's place in the whole
tensor alone (`operators/random_numbers`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ...model.model import Argument, Op, Ref
from ...model.tensor import TensorType
from ..graph import arguments
from ..operators.elementary import UNIFORM
from ..operators.shard_offsets import full_index
from ..passes.rewrite import ResultValues, Rewriter, RewriteRule
from .decompose import decomposition

# numbers of these are drawn in float32
NARROW = ("float16", "bfloat16")
DRAWS: set[str] = set()


def draw(*targets: str) -> Callable[[RewriteRule], RewriteRule]:
    """Register the rule of random operators, in place ones among them."""
    DRAWS.update(targets)
    return decomposition(*targets)


def uniform_numbers(
    rewriter: Rewriter, shape: tuple[int, ...], dtype: str
) -> tuple[Ref, TensorType]:
    """Numbers in (0, 1), and their type."""
    wide = "float32" if dtype in NARROW else dtype
    kind = TensorType(shape, wide if wide.startswith("float") else "float64")
    args = (Ref(rewriter.graph.key), 0, full_index(shape), shape, f"dtype:{kind.dtype}")
    return Ref(rewriter.emit(UNIFORM, args, kind)[0]), kind


def _cast(rewriter: Rewriter, value: Ref, dtype: str) -> int:
    type_ = rewriter.types[value.value]
    if type_.dtype == dtype:
        return value.value
    kind = TensorType(type_.shape, dtype)
    return rewriter.make("_to_copy.default", kind, value, dtype=f"dtype:{dtype}").value


def affine(rewriter: Rewriter, value: Ref, factor: Argument, shift: Argument) -> Ref:
    """value * factor + shift; both may be tensors."""
    kind = rewriter.types[value.value]
    for name, other, neutral in (("mul", factor, 1), ("add", shift, 0)):
        if other != neutral:
            form = "Tensor" if isinstance(other, Ref) else "Scalar"
            value = rewriter.make(f"{name}.{form}", kind, value, other)
    return value


def _positions(op: Op, first: int, *defaults: Argument) -> list[Argument]:
    """Numbers of a draw, by position or by name `from`/`to`; the operand comes first."""
    return arguments(op, *(None,) * first, *defaults)[first:]


@draw("aten.rand.default", "aten.rand.generator", "aten.rand_like.default")
def rand(rewriter: Rewriter, op: Op) -> ResultValues | None:
    type_ = rewriter.types[op.results[0]]
    drawn, _ = uniform_numbers(rewriter, type_.shape, type_.dtype)
    return (_cast(rewriter, drawn, type_.dtype),)


@draw("aten.uniform_.default", "aten.uniform.default")
def uniform(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """low + u (high - low)"""
    type_ = rewriter.types[op.results[0]]
    low, high = _positions(op, 1, 0.0, 1.0)[:2]
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    drawn, _ = uniform_numbers(rewriter, type_.shape, type_.dtype)
    return (_cast(rewriter, affine(rewriter, drawn, high - low, low), type_.dtype),)


def _normal(rewriter: Rewriter, type_: TensorType, mean: Argument, deviation: Argument) -> Ref:
    """mean + deviation sqrt(2) erfinv(2 u - 1)"""
    drawn, kind = uniform_numbers(rewriter, type_.shape, type_.dtype)
    centred = affine(rewriter, drawn, 2.0, -1.0)
    standard = affine(rewriter, rewriter.make("erfinv.default", kind, centred), math.sqrt(2.0), 0)
    return affine(rewriter, standard, deviation, mean)


@draw("aten.randn.default", "aten.randn.generator", "aten.randn_like.default")
def randn(rewriter: Rewriter, op: Op) -> ResultValues | None:
    type_ = rewriter.types[op.results[0]]
    return (_cast(rewriter, _normal(rewriter, type_, 0, 1), type_.dtype),)


@draw("aten.normal_.default", "aten.normal_functional.default")
def normal(rewriter: Rewriter, op: Op) -> ResultValues | None:
    type_ = rewriter.types[op.results[0]]
    mean, deviation = _positions(op, 1, 0.0, 1.0)[:2]
    return (_cast(rewriter, _normal(rewriter, type_, mean, deviation), type_.dtype),)


@draw("aten.normal.Tensor_float", "aten.normal.float_Tensor", "aten.normal.Tensor_Tensor")
def normal_around(rewriter: Rewriter, op: Op) -> ResultValues | None:
    type_ = rewriter.types[op.results[0]]
    mean, deviation = _positions(op, 0, 0.0, 1.0)[:2]
    return (_cast(rewriter, _normal(rewriter, type_, mean, deviation), type_.dtype),)


@draw("aten.normal.float_float")
def normal_of_shape(rewriter: Rewriter, op: Op) -> ResultValues | None:
    type_ = rewriter.types[op.results[0]]
    return (_cast(rewriter, _normal(rewriter, type_, *op.args[:2]), type_.dtype),)


@draw("aten.log_normal_.default", "aten.log_normal.default")
def log_normal(rewriter: Rewriter, op: Op) -> ResultValues | None:
    type_ = rewriter.types[op.results[0]]
    mean, deviation = _positions(op, 1, 1.0, 2.0)[:2]
    exponent = _normal(rewriter, type_, mean, deviation)
    kind = rewriter.types[exponent.value]
    return (_cast(rewriter, rewriter.make("exp.default", kind, exponent), type_.dtype),)


@draw("aten.exponential_.default", "aten.exponential.default")
def exponential(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """-log(u) / rate"""
    type_ = rewriter.types[op.results[0]]
    (rate,) = _positions(op, 1, 1.0)[:1]
    assert isinstance(rate, int | float)
    drawn, kind = uniform_numbers(rewriter, type_.shape, type_.dtype)
    logarithm = rewriter.make("log.default", kind, drawn)
    return (_cast(rewriter, affine(rewriter, logarithm, -1.0 / rate, 0), type_.dtype),)


@draw("aten.cauchy_.default", "aten.cauchy.default")
def cauchy(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """median + width tan(π (u - 1/2))"""
    type_ = rewriter.types[op.results[0]]
    median, width = _positions(op, 1, 0.0, 1.0)[:2]
    drawn, kind = uniform_numbers(rewriter, type_.shape, type_.dtype)
    angle = affine(rewriter, drawn, math.pi, -math.pi / 2)
    tangent = rewriter.make("tan.default", kind, angle)
    return (_cast(rewriter, affine(rewriter, tangent, width, median), type_.dtype),)


@draw("aten.geometric_.default", "aten.geometric.default")
def geometric(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """⌈log(u) / log(1 - p)⌉"""
    type_ = rewriter.types[op.results[0]]
    chance = op.args[1]
    assert isinstance(chance, float)
    drawn, kind = uniform_numbers(rewriter, type_.shape, type_.dtype)
    logarithm = rewriter.make("log.default", kind, drawn)
    scaled = affine(rewriter, logarithm, 1.0 / math.log1p(-chance), 0)
    return (_cast(rewriter, rewriter.make("ceil.default", kind, scaled), type_.dtype),)


@draw("aten.bernoulli.default")
def bernoulli(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """1 where u < p, a tensor"""
    return _below(rewriter, op, op.args[0])


@draw("aten.bernoulli.p", "aten.bernoulli_.float", "aten.bernoulli_.Tensor")
def bernoulli_of(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """1 where u < p, a number or a tensor, in the shape of the operand"""
    return _below(rewriter, op, _positions(op, 1, 0.5)[0])


def _below(rewriter: Rewriter, op: Op, chance: Argument) -> ResultValues | None:
    type_ = rewriter.types[op.results[0]]
    drawn, kind = uniform_numbers(rewriter, type_.shape, type_.dtype)
    truth = TensorType(kind.shape, "bool")
    form = "Tensor" if isinstance(chance, Ref) else "Scalar"
    return (_cast(rewriter, rewriter.make(f"lt.{form}", truth, drawn, chance), type_.dtype),)


# target -> position of the bounds [low,] high among the arguments
INTEGERS = {
    "aten.randint.default": (None, 0),
    "aten.randint.low": (0, 1),
    "aten.randint_like.default": (None, 1),
    "aten.randint_like.low_dtype": (1, 2),
    "aten.random_.from": (1, 2),
    "aten.random_.to": (None, 1),
}


@draw(*INTEGERS)
def integers(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """low + ⌊u (high - low)⌋"""
    type_ = rewriter.types[op.results[0]]
    first, last = INTEGERS[op.target]
    low, high = 0 if first is None else op.args[first], op.args[last]
    assert isinstance(low, int)
    assert isinstance(high, int)
    drawn, kind = uniform_numbers(rewriter, type_.shape, "float64")
    steps = rewriter.make("floor.default", kind, affine(rewriter, drawn, high - low, 0))
    return (_cast(rewriter, affine(rewriter, steps, 1, low), type_.dtype),)


@draw("aten.randperm.default")
def permutation(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """The order of u"""
    type_ = rewriter.types[op.results[0]]
    drawn, _ = uniform_numbers(rewriter, type_.shape, "float64")
    order = rewriter.make("argsort.default", TensorType(type_.shape, "int64"), drawn)
    return (_cast(rewriter, order, type_.dtype),)


@draw("aten.multinomial.default")
def categories(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Without replacement the largest of p / -log(u), with it the steps of the sum of p below u."""
    chances, result = op.operands()[0], rewriter.types[op.results[0]]
    _, count, again = arguments(op, None, None, False)[:3]
    type_ = rewriter.types[chances]
    if again is True and count != 1:
        return _with_replacement(rewriter, Ref(chances), result)
    drawn, kind = uniform_numbers(rewriter, type_.shape, type_.dtype)
    logarithm = rewriter.make("log.default", kind, drawn)
    waited = affine(rewriter, logarithm, -1.0, 0)
    keys = rewriter.make("div.Tensor", kind, Ref(chances), waited)
    best = TensorType(result.shape, kind.dtype)
    _, places = rewriter.emit("aten.topk.default", (keys, count, -1), best, result)
    return (places,)


def _with_replacement(rewriter: Rewriter, chances: Ref, result: TensorType) -> ResultValues:
    type_ = rewriter.types[chances.value]
    drawn, kind = uniform_numbers(rewriter, result.shape, type_.dtype)
    batch, classes, count = type_.shape[:-1], type_.shape[-1], result.shape[-1]
    steps = rewriter.make("cumsum.default", type_, chances, -1)
    total = rewriter.make(
        "slice.Tensor",
        TensorType((*batch, 1), type_.dtype),
        steps,
        len(batch),
        classes - 1,
        classes,
    )
    reached = rewriter.make("mul.Tensor", kind, drawn, total)
    column = Ref(rewriter.reshaped(reached.value, (*batch, count, 1)))
    row = Ref(rewriter.reshaped(steps.value, (*batch, 1, classes)))
    passed = TensorType((*batch, count, classes), "bool")
    below = rewriter.make("le.Tensor", passed, row, column)
    return (rewriter.make("sum.dim_IntList", result, below, (-1,)).value,)


# dropout of whole channels, and dropout that keeps mean and variance (Klambauer et al. 2017)

ALPHA = 1.7580993408473766


@draw("aten.feature_dropout.default", "aten.feature_dropout_.default")
def feature_dropout(rewriter: Rewriter, op: Op) -> ResultValues | None:
    return _dropped(rewriter, op, channels=True, alpha=False)


@draw("aten.alpha_dropout.default", "aten.alpha_dropout_.default")
def alpha_dropout(rewriter: Rewriter, op: Op) -> ResultValues | None:
    return _dropped(rewriter, op, channels=False, alpha=True)


@draw("aten.feature_alpha_dropout.default", "aten.feature_alpha_dropout_.default")
def feature_alpha_dropout(rewriter: Rewriter, op: Op) -> ResultValues | None:
    return _dropped(rewriter, op, channels=True, alpha=True)


def _dropped(rewriter: Rewriter, op: Op, channels: bool, alpha: bool) -> ResultValues | None:
    x, (rate, train) = op.operands()[0], op.args[1:3]
    type_ = rewriter.types[op.results[0]]
    assert isinstance(rate, int | float)
    if not train or rate == 0:
        return (x,)
    shape = type_.shape
    if channels:
        shape = (*shape[:2], *(1,) * (len(shape) - 2))
    drawn, _ = uniform_numbers(rewriter, shape, type_.dtype)
    present = rewriter.make("lt.Scalar", TensorType(shape, "bool"), drawn, 1.0 - rate)
    mask = Ref(_cast(rewriter, present, type_.dtype))
    if not alpha:
        mask = affine(rewriter, mask, 1.0 / (1.0 - rate), 0)
        return (rewriter.make("mul.Tensor", type_, Ref(x), mask).value,)
    scale = 1.0 / math.sqrt((ALPHA**2 * rate + 1.0) * (1.0 - rate))
    shift = affine(rewriter, mask, ALPHA * scale, -ALPHA * scale + ALPHA * scale * rate)
    factor = affine(rewriter, mask, scale, 0)
    product = rewriter.make("mul.Tensor", type_, Ref(x), factor)
    return (rewriter.make("add.Tensor", type_, product, shift).value,)


@draw("aten.rrelu.default", "aten.rrelu_.default")
def random_slope(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """x, or u x where x is negative; u is the mean of the bounds where nothing is trained"""
    x, type_ = op.operands()[0], rewriter.types[op.results[0]]
    low, high, train = _positions(op, 1, 1 / 8, 1 / 3, False)[:3]
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if not train:
        return (rewriter.make("leaky_relu.default", type_, Ref(x), (low + high) / 2).value,)
    drawn, _ = uniform_numbers(rewriter, type_.shape, type_.dtype)
    slope = Ref(_cast(rewriter, affine(rewriter, drawn, high - low, low), type_.dtype))
    negative = rewriter.make("le.Scalar", TensorType(type_.shape, "bool"), Ref(x), 0)
    scaled = rewriter.make("mul.Tensor", type_, Ref(x), slope)
    return (rewriter.make("where.self", type_, negative, scaled, Ref(x)).value,)
