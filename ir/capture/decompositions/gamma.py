"""Draws of the gamma and Dirichlet distributions, made of a fixed count of uniform numbers.

G. Marsaglia and W. W. Tsang, "A simple method for generating gamma variables" (2000): a normal number x
proposes d (1 + c x)³, which is accepted with a probability above 0.95; the first accepted of `ROUNDS`
proposals is the draw. Gradients are torch's own implicit ones.
"""

from __future__ import annotations

import math

from ...model.model import Argument, Op, Ref
from ...model.tensor import TensorType
from ..passes.rewrite import ResultValues, Rewriter
from .draws import affine, draw, uniform_numbers

ROUNDS = 8  # all are refused once in 10^10 draws, which then are d
LEAST = 1.1754943508222875e-38  # positive, as torch's own draws are


@draw("aten._standard_gamma.default")
def gamma(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Numbers of rate 1 by their concentration, with the gradient that torch gives them."""
    concentration = op.operands()[0]
    type_ = rewriter.types[concentration]
    constant = rewriter.make("detach.default", type_, Ref(concentration))
    drawn = _drawn(rewriter, constant)
    if concentration in rewriter.carrying:
        slope = rewriter.make("_standard_gamma_grad.default", type_, constant, drawn)
        nothing = rewriter.make("sub.Tensor", type_, Ref(concentration), constant)
        drawn = rewriter.make(
            "add.Tensor", type_, drawn, rewriter.make("mul.Tensor", type_, nothing, slope)
        )
    return (drawn.value,)


@draw("aten._sample_dirichlet.default")
def dirichlet(rewriter: Rewriter, op: Op) -> ResultValues | None:
    """Gamma numbers over their sum along the last dimension."""
    type_ = rewriter.types[op.results[0]]
    drawn = _drawn(rewriter, Ref(op.operands()[0]))
    row = TensorType((*type_.shape[:-1], 1), type_.dtype)
    total = rewriter.make("sum.dim_IntList", row, drawn, (-1,), True)
    return (rewriter.make("div.Tensor", type_, drawn, total).value,)


def _drawn(rewriter: Rewriter, concentration: Ref) -> Ref:
    type_ = rewriter.types[concentration.value]
    shape = type_.shape
    numbers, kind = uniform_numbers(rewriter, (2 * ROUNDS + 1, *shape), type_.dtype)
    rounds, one = TensorType((ROUNDS, *shape), kind.dtype), TensorType(shape, kind.dtype)
    dtype: Argument = f"dtype:{kind.dtype}"

    def step(name: str, of: TensorType, *args: Argument) -> Ref:
        return rewriter.make(name, of, *args)

    def part(first: int, of: TensorType) -> Ref:
        return step("slice.Tensor", of, numbers, 0, first, first + of.shape[0])

    def is_true(name: str, of: TensorType, *args: Argument) -> Ref:
        return step(name, TensorType(of.shape, "bool"), *args)

    wide = concentration
    if type_.dtype != kind.dtype:
        wide = rewriter.make("_to_copy.default", one, concentration, dtype=dtype)
    low = is_true("lt.Scalar", one, wide, 1)
    raised = step("where.self", one, low, affine(rewriter, wide, 1, 1), wide)
    d = affine(rewriter, raised, 1, -1 / 3)
    c = step("rsqrt.default", one, affine(rewriter, d, 9, 0))
    x = step("erfinv.default", rounds, affine(rewriter, part(0, rounds), 2.0, -1.0))
    x = affine(rewriter, x, math.sqrt(2.0), 0)
    root = affine(rewriter, step("mul.Tensor", rounds, x, c), 1, 1)
    cube = step("pow.Tensor_Scalar", rounds, root, 3)
    positive = is_true("gt.Scalar", rounds, cube, 0)
    cube = step("where.ScalarOther", rounds, positive, cube, 1)
    square = affine(rewriter, step("pow.Tensor_Scalar", rounds, x, 2), 0.5, 0)
    more = step(
        "sub.Tensor", rounds, step("log.default", rounds, cube), affine(rewriter, cube, 1, -1)
    )
    bound = step("add.Tensor", rounds, square, step("mul.Tensor", rounds, more, d))
    below = step("log.default", rounds, part(ROUNDS, rounds))
    accepted = is_true("lt.Tensor", rounds, below, bound)
    accepted = is_true("logical_and.default", rounds, accepted, positive)
    chosen = step("ones_like.default", one, d)
    for number in reversed(range(ROUNDS)):
        taken = is_true("select.int", one, accepted, 0, number)
        chosen = step("where.self", one, taken, step("select.int", one, cube, 0, number), chosen)
    drawn = step("mul.Tensor", one, d, chosen)
    last = step("select.int", one, numbers, 0, 2 * ROUNDS)
    power = step("pow.Tensor_Tensor", one, last, step("reciprocal.default", one, wide))
    drawn = step("where.self", one, low, step("mul.Tensor", one, drawn, power), drawn)
    drawn = step("clamp_min.default", one, drawn, LEAST)
    if type_.dtype != kind.dtype:
        drawn = rewriter.make("_to_copy.default", type_, drawn, dtype=f"dtype:{type_.dtype}")
    return drawn
