"""Change a model's precision: its own floating-point type, or all of them, to another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from ..errors import TraceError, UsageError
from ..model.model import Argument, Function, Model, Op, Parameter
from ..model.tensor import ITEM_BYTES, TensorType
from ..passes import Observer, Pass, run
from ..unknown_name import unknown_name

PRECISIONS = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
HALF_PRECISIONS = ("bf16", "fp16")
FLOATS = tuple(name for name in ITEM_BYTES if name.startswith(("float", "bfloat")))
# a norm without an epsilon takes that of its element type, which follows a cast to float64
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}
COMPLEX = tuple(name for name in ITEM_BYTES if name.startswith("complex"))


class CastModel(Pass[Model, Model], frozen=True):
    """Change floating-point types to `dtype`: those that are `source`, or all of them where it is
    empty. Raises UsageError for a type that is none."""

    dtype: str
    source: str = ""
    name = "cast"

    def apply(self, value: Model) -> Model:
        if not self.source:
            return cast_model(value, self.dtype)
        return _converted(value, {self.source: self.dtype})


def cast_model(model: Model, dtype: str) -> Model:
    """The same model with every floating-point tensor and every cast to one in `dtype`.

    Casts inside a model (norms in float32, say) hide differences that float64 would show; lifting
    them too makes two executions comparable to the last digits. Integers stay as they are.
    """
    if dtype not in FLOATS:
        raise UsageError(f"unknown floating-point type {dtype!r}; known: {', '.join(FLOATS)}")
    pair = "complex128" if dtype == "float64" else "complex64"
    return _converted(model, {**dict.fromkeys(FLOATS, dtype), **dict.fromkeys(COMPLEX, pair)})


def in_precision(model: Model, precision: str | None, observer: Observer | None = None) -> Model:
    """The model with the floats of its own type in a precision; None leaves it as traced.

    Tensors and casts of other floating-point types stay: the user wrote them. A model that was traced
    in its own type does not tell its casts to that type from none, so `trace` is given the precision
    wherever there is a module to trace, and files have a trace in half precision beside it.
    """
    if precision is None or precision == precision_of(model.parameters):
        return model
    if precision in HALF_PRECISIONS and model.half is not None:
        return in_precision(model.half, precision, observer)
    cast = CastModel(dtype_of(precision), own_type(model.parameters))
    return run(cast, model, observer)


def with_half(model: Model, traced_in: Callable[[str], Model]) -> Model:
    """The model with its trace in bfloat16, which `traced_in` gives, where that shows casts that its
    own trace does not, and where the module runs in bfloat16 at all."""
    if precision_of(model.parameters) in HALF_PRECISIONS:
        return model
    try:
        half = traced_in("bf16")
    except TraceError:
        return model
    return (
        model if half == in_precision(model, "bf16") else msgspec.structs.replace(model, half=half)
    )


def dtype_of(precision: str) -> str:
    """`"bf16"` as `"bfloat16"`; raises UsageError for an unknown one."""
    if precision not in PRECISIONS:
        raise UsageError(unknown_name("precision", precision, PRECISIONS))
    return PRECISIONS[precision]


def own_type(parameters: Sequence[Parameter]) -> str:
    """The floating-point type of a model: that of its first trainable parameter."""
    return next((p.type.dtype for p in parameters if p.trainable and p.type.is_float), "float32")


def narrowest_item_bytes(parameters: Sequence[Parameter]) -> int:
    """Bytes of an element of the narrowest parameters that are trained."""
    return min((ITEM_BYTES[p.type.dtype] for p in parameters if p.trainable), default=4)


def precision_of(parameters: Sequence[Parameter]) -> str:
    """The precision that a model has by itself."""
    own = own_type(parameters)
    return next((name for name, dtype in PRECISIONS.items() if dtype == own), "fp32")


def _converted(model: Model, types: Mapping[str, str]) -> Model:
    replace = msgspec.structs.replace
    return replace(
        model,
        functions=tuple(_function(f, types) for f in model.functions),
        parameters=tuple(replace(p, type=_type(p.type, types)) for p in model.parameters),
        inputs=tuple(replace(i, type=_type(i.type, types)) for i in model.inputs),
        half=None,
    )


def _type(type_: TensorType, types: Mapping[str, str]) -> TensorType:
    return TensorType(type_.shape, types.get(type_.dtype, type_.dtype))


def _function(function: Function, types: Mapping[str, str]) -> Function:
    kinds = tuple(_type(t, types) for t in function.types)
    ops = tuple(_of_type(_op(op, types), function.types, kinds) for op in function.ops)
    return msgspec.structs.replace(function, types=kinds, ops=ops)


def _of_type(op: Op, before: Sequence[TensorType], after: Sequence[TensorType]) -> Op:
    """An operator that reads nothing and leaves the type of its result to torch names the new type."""
    result = op.results[0] if op.results and not op.operands() else -1
    if result < 0 or before[result] == after[result] or any(map(_is_dtype, op.kwargs.values())):
        return op
    return msgspec.structs.replace(
        op, kwargs={**op.kwargs, "dtype": f"dtype:{after[result].dtype}"}
    )


def _is_dtype(argument: Argument) -> bool:
    return isinstance(argument, str) and argument.startswith("dtype:")


def _op(op: Op, types: Mapping[str, str]) -> Op:
    args = tuple(_argument(a, types) for a in op.args)
    kwargs = {name: _argument(a, types) for name, a in op.kwargs.items()}
    return msgspec.structs.replace(op, args=args, kwargs=kwargs)


def _argument(argument: Argument, types: Mapping[str, str]) -> Argument:
    if isinstance(argument, tuple):
        return tuple(_argument(part, types) for part in argument)
    if isinstance(argument, str) and _is_dtype(argument):
        name = argument.removeprefix("dtype:")
        return f"dtype:{types.get(name, name)}"
    if isinstance(argument, float) and argument == EPSILON["float32"]:
        return EPSILON.get(types.get("float32", "float32"), argument)
    return argument
