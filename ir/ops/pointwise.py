"""Pointwise operators: every element of the result depends on one element of each operand."""

from __future__ import annotations

from ..model.loops import Loops, Site, declare, loops
from .pattern import aligned, dim_names, is_tensor, literal, pattern

Groups = tuple[tuple[int, ...], ...]

# Operands (as a group) that the result is linear in, the others fixed.
LINEAR: dict[str, Groups] = {
    "aten.neg.default": ((0,),),
    "aten._to_copy.default": ((0,),),
    "aten.to.dtype": ((0,),),
    "aten.type_as.default": ((0,),),
    "aten.clone.default": ((0,),),
    "aten.contiguous.default": ((0,),),
    "aten.detach.default": ((0,),),
    "aten.alias.default": ((0,),),
    "aten.lift_fresh_copy.default": ((0,),),
    "aten.positive.default": ((0,),),
    "aten.mul.Tensor": ((0,), (1,)),
    "aten.mul.Scalar": ((0,),),
    "aten.div.Tensor": ((0,),),
    "aten.div.Scalar": ((0,),),
    "aten.gelu_backward.default": ((0,),),
    "aten.silu_backward.default": ((0,),),
    "aten.tanh_backward.default": ((0,),),
    "aten.sigmoid_backward.default": ((0,),),
    "aten.threshold_backward.default": ((0,),),
    "aten.leaky_relu_backward.default": ((0,),),
    "aten.hardtanh_backward.default": ((0,),),
    "aten.hardswish_backward.default": ((0,),),
    "aten.hardsigmoid_backward.default": ((0,),),
    "aten.elu_backward.default": ((0,),),
    "aten.softplus_backward.default": ((0,),),
    "aten.mish_backward.default": ((0,),),
    "aten.native_dropout_backward.default": ((0,),),
    "aten.softshrink_backward.default": ((0,),),
    "aten.hardshrink_backward.default": ((0,),),
    "aten.logit_backward.default": ((0,),),
    "aten._conj.default": ((0,),),
    "aten._conj_physical.default": ((0,),),
    "aten.conj_physical.default": ((0,),),
    "aten.resolve_conj.default": ((0,),),
    "aten._neg_view.default": ((0,),),
    "aten.resolve_neg.default": ((0,),),
    "aten.real.default": ((0,),),
    "aten.imag.default": ((0,),),
    "aten.complex.default": ((0, 1),),
    "aten.polar.default": ((0,),),
    "aten.deg2rad.default": ((0,),),
    "aten.rad2deg.default": ((0,),),
}
# Sums of two tensors: linear in both together, and in none when one is a number.
ADDITIONS = ("aten.add.Tensor", "aten.sub.Tensor", "aten.rsub.Tensor")
# Choices between tensors: linear in what is chosen from, numbers must be 0.
CHOICES: dict[str, tuple[int, ...]] = {
    "aten.where.self": (1, 2),
    "aten.where.ScalarOther": (1, 2),
    "aten.where.ScalarSelf": (1, 2),
    "aten.masked_fill.Scalar": (0, 2),
    "aten.masked_fill.Tensor": (0, 2),
}
# fmt: off
ARITHMETIC = (
    "aten.add.Scalar", "aten.sub.Scalar", "aten.rsub.Scalar", "aten.div.Tensor_mode",
    "aten.div.Scalar_mode", "aten.floor_divide.default", "aten.floor_divide.Scalar",
    "aten.remainder.Scalar", "aten.remainder.Tensor", "aten.fmod.Scalar", "aten.fmod.Tensor",
    "aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar", "aten.square.default",
    "aten.sqrt.default", "aten.rsqrt.default", "aten.reciprocal.default", "aten.abs.default",
    "aten.sign.default", "aten.sgn.default", "aten.floor.default", "aten.ceil.default",
    "aten.round.default", "aten.trunc.default", "aten.frac.default",
    "aten.addcmul.default", "aten.addcdiv.default", "aten.lerp.Scalar", "aten.lerp.Tensor",
    "aten.maximum.default", "aten.minimum.default", "aten.fmax.default", "aten.fmin.default",
    "aten.clamp.default", "aten.clamp.Tensor", "aten.clamp_min.default", "aten.clamp_min.Tensor",
    "aten.clamp_max.default", "aten.clamp_max.Tensor", "aten.nan_to_num.default",
    "aten.atan2.default", "aten.hypot.default", "aten.xlogy.Tensor", "aten.logaddexp.default",
    "aten.logaddexp2.default", "aten.copysign.Tensor", "aten.copysign.Scalar", "aten.heaviside.default",
    "aten.round.decimals", "aten.signbit.default", "aten.gcd.default", "aten.lcm.default",
    "aten.xlogy.Scalar_Other", "aten.xlogy.Scalar_Self", "aten.ldexp.Tensor",
    "aten.nextafter.default", "aten.angle.default",
)
# fmt: on
# fmt: off
TRANSCENDENTAL = (
    "aten.exp.default", "aten.exp2.default", "aten.expm1.default", "aten.log.default",
    "aten.log2.default", "aten.log10.default", "aten.log1p.default", "aten.sin.default",
    "aten.cos.default", "aten.tan.default", "aten.asin.default", "aten.acos.default",
    "aten.atan.default", "aten.sinh.default", "aten.cosh.default", "aten.erf.default",
    "aten.erfc.default", "aten.asinh.default", "aten.acosh.default", "aten.atanh.default",
    "aten.erfinv.default", "aten.lgamma.default", "aten.digamma.default", "aten.i0.default",
    "aten.sinc.default", "aten.logit.default", "aten.polygamma.default", "aten.igamma.default",
    "aten.special_ndtri.default", "aten.special_log_ndtr.default", "aten.special_i1.default",
    "aten.special_i0e.default", "aten.special_i1e.default", "aten.special_erfcx.default",
    "aten.special_entr.default", "aten.special_xlog1py.default", "aten._standard_gamma_grad.default",
    "aten._dirichlet_grad.default",
)
# fmt: on
# fmt: off
ACTIVATIONS = (
    "aten.relu.default", "aten.gelu.default", "aten.silu.default", "aten.tanh.default",
    "aten.sigmoid.default", "aten.leaky_relu.default", "aten.hardtanh.default",
    "aten.hardswish.default", "aten.hardsigmoid.default", "aten.elu.default",
    "aten.softplus.default", "aten.mish.default", "aten.relu6.default", "aten.selu.default",
    "aten.threshold.default", "aten.log_sigmoid.default", "aten.celu.default",
    "aten.softshrink.default", "aten.hardshrink.default",
)
# fmt: on
COMPARISONS = tuple(
    f"aten.{name}.{other}"
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
    for other in ("Scalar", "Tensor")
)
# fmt: off
LOGIC = (
    "aten.logical_and.default", "aten.logical_or.default", "aten.logical_not.default",
    "aten.logical_xor.default", "aten.bitwise_and.Tensor", "aten.bitwise_or.Tensor",
    "aten.bitwise_xor.Tensor", "aten.bitwise_not.default", "aten.bitwise_and.Scalar",
    "aten.bitwise_or.Scalar", "aten.bitwise_xor.Scalar", "aten.isnan.default", "aten.isinf.default",
    "aten.isneginf.default", "aten.__and__.Tensor", "aten.__or__.Tensor", "aten.where.Scalar",
    "aten.bitwise_left_shift.Tensor_Scalar", "aten.bitwise_right_shift.Tensor_Scalar",
    "aten.bitwise_left_shift.Tensor", "aten.bitwise_right_shift.Tensor", "aten.isposinf.default",
    "aten.isfinite.default", "aten.isreal.default", "aten.__lshift__.Scalar",
    "aten.__lshift__.Tensor", "aten.__rshift__.Scalar", "aten.__rshift__.Tensor",
)
# fmt: on
# The result has the shape of the first operand and takes no value from it.
# fmt: off
LIKE = (
    "aten.zeros_like.default", "aten.ones_like.default", "aten.full_like.default",
    "aten.empty_like.default", "aten.fill.Scalar", "aten.fill.Tensor", "aten.zero.default",
)
# fmt: on
# fmt: off
MOVES = (
    "aten._to_copy.default", "aten.to.dtype", "aten.type_as.default", "aten.clone.default",
    "aten.contiguous.default", "aten.copy.default", "aten.lift_fresh_copy.default", *LIKE,
)
# fmt: on
# fmt: off
VIEWS = (
    "aten.detach.default", "aten.alias.default", "aten.positive.default", "aten._conj.default",
    "aten._neg_view.default", "aten.real.default", "aten.imag.default",
)
# fmt: on


@declare(
    *LINEAR,
    *ADDITIONS,
    *CHOICES,
    *ARITHMETIC,
    *TRANSCENDENTAL,
    *ACTIVATIONS,
    *COMPARISONS,
    *LOGIC,
    *LIKE,
    "aten.copy.default",
)
def pointwise(site: Site) -> Loops | None:
    (result,) = site.results
    if result is None:
        return None
    full = dim_names(result.shape)
    text = pattern((aligned(operand.shape, full) for operand in site.operands), [full])
    target = site.op.target
    if target in VIEWS:
        return loops(text, site, linear=linear(site), work="view", flops=0)
    if target in MOVES:
        return loops(text, site, linear=linear(site), work="move", flops=0)
    return loops(text, site, linear=linear(site))


def linear(site: Site) -> Groups:
    """The groups whose operands, and the result, are real or complex."""
    (result,) = site.results
    if result is None or not result.differentiable:
        return ()
    groups = _groups(site)
    return tuple(
        group
        for group in groups
        if group and all(i < len(site.operands) and site.operands[i].differentiable for i in group)
    )


def _groups(site: Site) -> Groups:
    target = site.op.target
    if target in ADDITIONS:
        return ((0, 1),) if is_tensor(site, 0) and is_tensor(site, 1) else ()
    if target in CHOICES:
        return (_choice(site, CHOICES[target]),)
    return LINEAR.get(target, ())


def _choice(site: Site, positions: tuple[int, ...]) -> tuple[int, ...]:
    """Operand numbers of the tensors chosen from; () when a number other than 0 is among them."""
    tensors = [i for i in range(len(site.op.args)) if is_tensor(site, i)]
    numbers = [literal(site, i) for i in positions if not is_tensor(site, i)]
    if any(number != 0 for number in numbers):
        return ()
    return tuple(tensors.index(i) for i in positions if is_tensor(site, i))


@declare("aten._prelu_kernel.default", "aten._prelu_kernel_backward.default")
def leaky(site: Site) -> Loops:
    """(gradient,) x, slope -> x; backward gives the gradients of both, of the shape of x"""
    full = dim_names(site.operands[0].shape)
    inputs = [aligned(operand.shape, full) for operand in site.operands]
    backward = len(inputs) == 3
    text = pattern(inputs, [full] * len(site.results))
    return loops(text, site, linear=((0,),) if backward else ())


@declare("aten.frexp.Tensor", "aten.fake_quantize_per_tensor_affine_cachemask.default")
def two_of_each(site: Site) -> Loops:
    """x -> mantissa, exponent; x, scale, zero, bounds -> x on the grid, whether it is within"""
    full = dim_names(site.operands[0].shape)
    return loops(pattern([full], [full] * len(site.results)), site)


@declare("aten.view_as_complex.default")
def as_complex(site: Site) -> Loops:
    """[… 2] -> […] of complex numbers"""
    full = dim_names(site.operands[0].shape[:-1])
    text = pattern([[*full, "part!"]], [full])
    return loops(text, site, linear=((0,),), work="view", flops=0)


@declare("aten.view_as_real.default")
def as_real(site: Site) -> Loops:
    """[…] of complex numbers -> [… 2]"""
    full = dim_names(site.operands[0].shape)
    text = pattern([full], [[*full, "part!"]])
    return loops(text, site, linear=((0,),), work="view", flops=0)
