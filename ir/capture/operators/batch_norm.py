"""Training batch norm as operators that split along the batch: statistics, then normalisation.

    mean = mean(x);  variance = mean((x - mean)^2);  y = (x - mean) / sqrt(variance + eps) * w + b

Statistics of a split batch are averaged over its shards, and so equal those of the full batch
(Ioffe, Szegedy 2015; "synchronised" batch norm). The gradient of x includes the path
through them. The hidden write of the running statistics becomes explicit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...model.model import Argument, Ref
from ...model.tensor import TensorType
from ..passes.mutation import AliasTracker
from .elementary import LIBRARY, OPS, register, widened

LOW = ("float16", "bfloat16")


def batch_norm(
    aliases: AliasTracker,
    x: int,
    args: tuple[Argument, ...],
    running: tuple[int, int] | None,
    scope: str,
) -> int:
    """Emit `aten.batch_norm` with `args`; `running`: values of running mean and variance."""
    _, weight, bias, _, _, _, momentum, epsilon = args[:8]
    type_ = aliases.graph.types[x]
    wide = "float32" if type_.dtype in LOW else type_.dtype
    over = tuple(dim for dim in range(len(type_.shape)) if dim != 1)
    detached = Ref(aliases.detached(x, scope))

    def statistic(name: str, *rest: Argument, **kwargs: Argument) -> Ref:
        type_of = (TensorType((type_.shape[1],), wide),)
        return Ref(aliases.emit(name, rest, type_of, kwargs, scope)[0])

    mean = statistic("aten.mean.dim", detached, over, False, dtype=f"dtype:{wide}")
    variance = statistic("plait.square_deviation.default", detached, mean)
    above = statistic("aten.add.Scalar", variance, epsilon)
    inverse = statistic("aten.rsqrt.default", above)
    normalised = (Ref(x), mean, inverse, weight, bias)
    (result,) = aliases.emit("plait.batch_norm.default", normalised, (type_,), None, scope)
    if running is not None:
        assert isinstance(momentum, float)
        count = type_.elements // type_.shape[1]
        unbiased = statistic("aten.mul.Scalar", variance, count / max(count - 1, 1))
        _update(aliases, running[0], mean.value, momentum, scope)
        _update(aliases, running[1], unbiased.value, momentum, scope)
    return result


def _update(aliases: AliasTracker, buffer: int, batch: int, momentum: float, scope: str) -> None:
    """buffer = (1 - momentum) * buffer + momentum * batch"""
    type_ = aliases.graph.types[buffer]

    def scaled(value: int, factor: float) -> Ref:
        args = (Ref(value), factor)
        return Ref(aliases.emit("aten.mul.Scalar", args, (type_,), None, scope)[0])

    old = scaled(aliases.resolve(buffer), 1.0 - momentum)
    new = scaled(aliases.cast(batch, type_.dtype, scope), momentum)
    (value,) = aliases.emit("aten.add.Tensor", (old, new), (type_,), None, scope)
    aliases.assign(buffer, value, scope)


# the operators: x [n c ..], statistics, weight and bias [c]


def _row(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(1, -1, *(1,) * (x.dim() - 2))


def _others(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


def _square_deviation(x: Tensor, mean: Tensor) -> Tensor:
    return (widened(x) - _row(mean, x)).square().mean(_others(x)).to(mean.dtype)


def _batch_norm(
    x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    result = (widened(x) - _row(mean, x)) * _row(inverse, x)
    if weight is not None:
        result = result * _row(weight, x)
    if bias is not None:
        result = result + _row(bias, x)
    return result.to(x.dtype)


def _batch_norm_reductions(
    gradient: Tensor, x: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of bias and weight."""
    wide, over = widened(gradient), _others(x)
    normalised = (widened(x) - _row(mean, x)) * _row(inverse, x)
    return wide.sum(over).to(mean.dtype), (wide * normalised).sum(over).to(mean.dtype)


def _batch_norm_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    bias_mean: Tensor,
    weight_mean: Tensor,
) -> Tensor:
    """The gradient of x; the means are those sums over the number of elements of a channel."""
    normalised = (widened(x) - _row(mean, x)) * _row(inverse, x)
    result = widened(gradient) - _row(bias_mean, x) - normalised * _row(weight_mean, x)
    result = result * _row(inverse, x)
    return (result if weight is None else result * _row(weight, x)).to(x.dtype)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, mean, inverse, weight, bias = ctx.saved_tensors
    of_bias, of_weight = OPS.batch_norm_sums(gradient, x, mean, inverse)
    count = x.numel() // x.shape[1]
    means = of_bias / count, of_weight / count
    of_x = OPS.batch_norm_backward(gradient, x, mean, inverse, weight, *means)
    cast = [
        None if parameter is None else gradient_sum.to(parameter.dtype)
        for parameter, gradient_sum in ((weight, of_weight), (bias, of_bias))
    ]
    return of_x, None, None, *cast


# Shapes and strides are those of the operators inside, which run on tensors without values too.
for schema, function in (
    ("square_deviation(Tensor x, Tensor mean) -> Tensor", _square_deviation),
    (
        "batch_norm(Tensor x, Tensor mean, Tensor inverse, Tensor? weight, Tensor? bias) -> Tensor",
        _batch_norm,
    ),
    (
        "batch_norm_sums(Tensor gradient, Tensor x, Tensor mean, Tensor inverse) "
        "-> (Tensor, Tensor)",
        _batch_norm_reductions,
    ),
    (
        "batch_norm_backward(Tensor gradient, Tensor x, Tensor mean, Tensor inverse, "
        "Tensor? weight, Tensor bias_mean, Tensor weight_mean) -> Tensor",
        _batch_norm_backward,
    ),
):
    register(schema, function, function)
torch.library.register_autograd("plait::batch_norm", _gradient, setup_context=_context, lib=LIBRARY)
