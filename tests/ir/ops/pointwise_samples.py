"""Samples of the pointwise operators, made from their schemas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plait.ir.capture.resolve import overload
from plait.ir.model.loops import OPERATORS
from plait.ir.ops import pointwise
from plait.tests.ir.ops.shards import Sample
from plait.tests.ir.ops.transform_samples import COMPLEX

_GENERATOR = torch.Generator().manual_seed(1)
SHAPES = ((2, 4, 6), (4, 1), (6,))
INTEGERS = ("bitwise", "__and__", "__or__", "logical", "shift", "gcd", "lcm")
SIGNED = ("relu", "elu", "silu", "gelu", "abs", "sign", "sgn", "tanh", "hard", "threshold", "mish")


def _tensor(target: str, shape: tuple[int, ...]) -> Tensor:
    name = target.split(".")[1]
    if any(part in name for part in INTEGERS):
        return torch.randint(5, shape, generator=_GENERATOR)
    if any(part in name for part in SIGNED):
        return torch.randn(shape, generator=_GENERATOR, dtype=torch.float64) * 2
    return torch.rand(shape, generator=_GENERATOR, dtype=torch.float64) * 0.8 + 0.1


def _value(target: str, kind: str, name: str, number: int, same: bool) -> Any:
    if kind == "Tensor" and name in ("condition", "mask"):
        return torch.rand(SHAPES[number], generator=_GENERATOR) > 0.5
    if kind in ("Tensor", "Optional[Tensor]"):
        scalar = target in ("aten.masked_fill.Tensor", "aten.fill.Tensor") and number
        return _tensor(target, () if scalar else SHAPES[0 if same else number % 3])
    if kind == "int":
        return 2
    if kind in ("number", "Optional[number]"):
        return 2 if any(part in target for part in INTEGERS) else 0.7
    raise AssertionError(f"{target}: {name} of type {kind} needs a sample by hand")


def _sample(target: str, same: bool) -> Sample:
    """Tensors first to last with shapes that broadcast, numbers for numbers, defaults left out."""
    schema = overload(target)
    assert schema is not None
    args: list[Any] = []
    tensors = 0
    for argument in schema._schema.arguments:
        kind = str(argument.type)
        needed = not argument.has_default_value() or kind == "Optional[Tensor]"
        if argument.kwarg_only or not (needed or "clamp" in target):
            continue
        args.append(_value(target, kind, argument.name, tensors, same))
        tensors += "Tensor" in kind
    return Sample(target, tuple(args))


F64 = {"dtype": torch.float64}
_X, _Y = torch.rand(4, 6, dtype=torch.float64), torch.rand(4, 1, dtype=torch.float64)
_MASK = torch.rand(4, 6) > 0.5
BY_HAND = [
    Sample("aten._to_copy.default", (_X,), {"dtype": torch.float32}),
    Sample("aten._to_copy.default", (_MASK,), F64),
    Sample("aten.to.dtype", (_X, torch.float32)),
    Sample("aten.type_as.default", (_X, _X.float())),
    Sample("aten.contiguous.default", (_X,)),
    Sample("aten.add.Tensor", (_X, _Y), {"alpha": 0.5}),
    Sample("aten.add.Tensor", (_X, 1.5)),
    Sample("aten.sub.Tensor", (_X, torch.arange(6))),
    Sample("aten.mul.Tensor", (_X, _MASK)),
    Sample("aten.mul.Tensor", (_X, 2.5)),
    Sample("aten.mul.Tensor", (torch.tensor(2.0, dtype=torch.float64), _X)),
    Sample("aten.div.Tensor_mode", (_X, _Y), {"rounding_mode": "floor"}),
    Sample("aten.div.Scalar_mode", (_X, 0.3), {"rounding_mode": "trunc"}),
    Sample("aten.gelu.default", (_X,), {"approximate": "tanh"}),
    Sample("aten.gelu_backward.default", (_X, _X), {"approximate": "tanh"}),
    Sample("aten.where.ScalarOther", (_MASK, _X, 0.0)),
    Sample("aten.fake_quantize_per_tensor_affine_cachemask.default", (_X, 0.1, 0, -4, 4)),
    Sample("aten.where.ScalarSelf", (_MASK, 0.0, _X)),
    Sample("aten.where.self", (_MASK, _X, torch.tensor(2.0, dtype=torch.float64))),
    Sample("aten.masked_fill.Scalar", (_X, _MASK, 0)),
    Sample("aten.masked_fill.Scalar", (_X, _MASK, float("-inf"))),
    Sample("aten.elu_backward.default", (_X, 1.0, 1.0, 1.0, False, _X - 0.5)),
    Sample("aten.leaky_relu_backward.default", (_X, _X - 0.5, 0.1, False)),
    Sample("aten.native_dropout_backward.default", (_X, _MASK, 2.0)),
    Sample("aten.round.decimals", (_X,), {"decimals": 1}),
    Sample("aten.acosh.default", (_X + 2,)),
    Sample("aten.polygamma.default", (2, _X)),
    Sample("aten.ldexp.Tensor", (_X, torch.arange(6))),
    Sample("aten._prelu_kernel.default", (_X - 0.5, _Y[:1])),
    Sample("aten._prelu_kernel_backward.default", (_X, _X - 0.5, _Y[:1])),
    Sample("aten.frexp.Tensor", (_X,)),
    Sample("aten.empty_like.default", (torch.empty(0, 4, dtype=torch.float64),)),
]
COMPLEX_TARGETS = {sample.target for sample in COMPLEX}
SAME_SHAPE = ("_backward", "_like", "fill", "copy")


def _all() -> list[Sample]:
    samples = []
    done = {sample.target for sample in BY_HAND}
    for target, declare in OPERATORS.items():
        if declare is not pointwise.pointwise:
            continue
        if target not in (*done, *COMPLEX_TARGETS):
            same = any(part in target for part in SAME_SHAPE)
            samples.append(_sample(target, same and "copy.default" not in target))
    return samples + BY_HAND


POINTWISE = _all()
