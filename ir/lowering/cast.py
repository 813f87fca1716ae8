"""Change a model's precision: every floating-point type and cast to another one."""

from __future__ import annotations

import msgspec

from ..errors import UsageError
from ..model import Argument, Function, Model, Op
from ..passes import Observer, Pass, run
from ..tensor import ITEM_BYTES, TensorType

PRECISIONS = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
FLOATS = tuple(name for name in ITEM_BYTES if name.startswith(("float", "bfloat")))


class CastModel(Pass[Model, Model], frozen=True):
    """Change every floating-point type to `dtype`; raises UsageError for a type that is none."""

    dtype: str
    name = "cast"

    def apply(self, value: Model) -> Model:
        return cast_model(value, self.dtype)


def cast_model(model: Model, dtype: str) -> Model:
    """The same model with every floating-point tensor and every cast to one in `dtype`.

    Casts inside a model (norms in float32, say) hide differences that float64 would show; lifting
    them too makes two executions comparable to the last digits. Integers stay as they are.
    """
    if dtype not in FLOATS:
        raise UsageError(f"unknown floating-point type {dtype!r}; known: {', '.join(FLOATS)}")
    replace = msgspec.structs.replace
    return replace(
        model,
        functions=tuple(_function(f, dtype) for f in model.functions),
        parameters=tuple(replace(p, type=_type(p.type, dtype)) for p in model.parameters),
        inputs=tuple(replace(i, type=_type(i.type, dtype)) for i in model.inputs),
    )


def in_precision(model: Model, precision: str | None, observer: Observer | None = None) -> Model:
    """The model with parameters and activations in a precision; None leaves it as traced."""
    if precision is None:
        return model
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    return run(CastModel(PRECISIONS[precision]), model, observer)


def _type(type_: TensorType, dtype: str) -> TensorType:
    return TensorType(type_.shape, dtype) if type_.is_float else type_


def _function(function: Function, dtype: str) -> Function:
    types = tuple(_type(t, dtype) for t in function.types)
    ops = tuple(_op(op, dtype) for op in function.ops)
    return msgspec.structs.replace(function, types=types, ops=ops)


def _op(op: Op, dtype: str) -> Op:
    args = tuple(_argument(a, dtype) for a in op.args)
    kwargs = {name: _argument(a, dtype) for name, a in op.kwargs.items()}
    return msgspec.structs.replace(op, args=args, kwargs=kwargs)


def _argument(argument: Argument, dtype: str) -> Argument:
    if isinstance(argument, tuple):
        return tuple(_argument(part, dtype) for part in argument)
    if isinstance(argument, str) and argument.removeprefix("dtype:") in FLOATS:
        return f"dtype:{dtype}" if argument.startswith("dtype:") else argument
    return argument
