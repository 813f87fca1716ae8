"""Lifting a model's precision changes floating-point types and nothing else."""

import pytest

from plait.ir.errors import UsageError
from plait.ir.lowering.cast import cast_model
from plait.ir.model.model import Function, Input, Model, ModelInput, Op, Output, Parameter, Ref
from plait.ir.model.tensor import TensorType

LOW, WIDE, COUNT = (TensorType((2,), d) for d in ("bfloat16", "float32", "int64"))


def model(low: TensorType, wide: TensorType, cast: str) -> Model:
    op = Op("aten._to_copy.default", (Ref(0), "float32"), {"dtype": f"dtype:{cast}"}, (2,))
    keep = Op("aten._to_copy.default", (Ref(1),), {"dtype": "dtype:int64"}, (3,))
    function = Function(
        "f",
        (low, COUNT, wide, COUNT),
        (Input(0, "parameter", "w"), Input(1, "activation", "x")),
        (Output(2),),
        (op, keep),
        2,
    )
    parameters = (Parameter("w", low, "parameter", True),)
    return Model("m", (function,), (), parameters, (ModelInput("x", COUNT, (0,), True),), "h", 2)


def test_every_float_type_and_cast_is_lifted() -> None:
    double = TensorType((2,), "float64")
    assert cast_model(model(LOW, WIDE, "float32"), "float64") == model(double, double, "float64")


def test_integers_are_no_precision() -> None:
    with pytest.raises(UsageError, match="int32"):
        cast_model(model(LOW, WIDE, "float32"), "int32")
