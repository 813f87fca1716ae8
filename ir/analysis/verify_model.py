"""Checks of a model that may come from a file: its types are those that its operators give."""

from __future__ import annotations

from keyword import iskeyword

from .. import ops as _declarations  # noqa: F401  # pyright: ignore[reportUnusedImport]  (registers)
from ..errors import FileError
from ..model.loops import declaration, site_of
from ..model.model import Call, Function, Model, Parameter
from ..model.tensor import TensorType
from ..model.verify import require, verify_structure

# What a declaration raises for operands, results or literals that its operator cannot have.
UNDECLARABLE = (AssertionError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


def verify_model(model: Model) -> None:
    """Raises FileError naming the JSON path of the first thing that does not hold together: structure,
    types of operators against their declarations, types where functions are called."""
    verify_structure(model)
    for i, function in enumerate(model.functions):
        _verify_function(function, f"$.functions[{i}]")
    _verify_state(model)
    functions = {f.name: f for f in model.functions}
    tensors = {p.name: p for p in model.parameters}
    types = {item.name: item.type for item in model.inputs}
    for i, call in enumerate(model.calls):
        _verify_call(call, functions[call.function], types, f"$.calls[{i}]")
        _verify_parameters(tensors, call, functions[call.function], f"$.calls[{i}]")
    loss = types[model.loss]
    require(loss.shape == () and loss.is_float, "$.loss", f"{model.loss} is {loss}, not a number")
    if model.half is not None:
        require(model.half.half is None, "$.half.half", "a trace in half of one in half")
        verify_model(model.half)


def _verify_function(function: Function, where: str) -> None:
    require(not iskeyword(function.name), f"{where}.name", "a keyword of Python")
    kinds = [item.kind for item in function.inputs]
    order = {"parameter": 0, "buffer": 0, "activation": 1, "key": 2}
    ordered = kinds == sorted(kinds, key=order.__getitem__) and kinds.count("key") <= 1
    require(ordered, f"{where}.inputs", "not parameters and buffers, activations, key")
    for i, op in enumerate(function.ops):
        site = site_of(op, function.types)
        try:
            declaration(site)
        except UNDECLARABLE as error:
            operands = ", ".join(map(str, site.operands))
            raise FileError(
                f"{where}.ops[{i}]: {op.target:.80} does not give these types from {operands:.300} "
                f"({error!s:.200})"
            ) from None
    for i, item in enumerate(function.inputs):
        _verify_gradient(function, item.value, item.gradient, f"{where}.inputs[{i}].gradient")
    for i, output in enumerate(function.outputs):
        _verify_gradient(function, output.value, output.tangent, f"{where}.outputs[{i}].tangent")


def _verify_gradient(function: Function, value: int, gradient: int | None, where: str) -> None:
    """A gradient has the shape of its value, both of floating point."""
    if gradient is None:
        return
    own, other = function.types[value], function.types[gradient]
    same = own.shape == other.shape and is_differentiable(own) and is_differentiable(other)
    require(same, where, f"{other} is no gradient of {own}")


def is_differentiable(type_: TensorType) -> bool:
    return type_.is_float or type_.dtype.startswith("complex")


def _verify_state(model: Model) -> None:
    """Tensors of the module under names of their own, with their values where those are given."""
    names = [name for p in model.parameters for name in (p.name, *p.aliases)]
    require(len(set(names)) == len(names), "$.parameters", "two tensors share a name")
    for i, tensor in enumerate(model.parameters):
        where = f"$.parameters[{i}]"
        learns = not tensor.trainable or is_differentiable(tensor.type)
        require(learns, f"{where}.trainable", f"{tensor.type} cannot be trained")
        have, want = tensor.values, tensor.type.elements
        fits = have is None or len(have) == want
        require(fits, f"{where}.values", f"not the {want} elements of the tensor")
    for i, item in enumerate(model.inputs):
        fits = not item.batched or item.type.shape[:1] == (model.batch,)
        require(fits, f"$.inputs[{i}].type", f"not the {model.batch} samples of the batch")


def _verify_call(call: Call, function: Function, types: dict[str, TensorType], where: str) -> None:
    """Arguments have the types that the function reads; the types of its results are added."""
    for i, (name, item) in enumerate(zip(call.arguments, function.activations(), strict=True)):
        want = function.types[item.value]
        fits = types[name] == want
        require(fits, f"{where}.arguments[{i}]", f"{name} is {types[name]}, not {want}")
    for name, output in zip(call.results, function.outputs, strict=True):
        types[name] = function.types[output.value]


def _verify_parameters(
    tensors: dict[str, Parameter], call: Call, function: Function, where: str
) -> None:
    """Tensors of the module have the types that the function reads and updates."""
    for i, (name, item) in enumerate(zip(call.parameters, function.state_inputs(), strict=True)):
        have, want = tensors[name], function.types[item.value]
        at = f"{where}.parameters[{i}]"
        require(have.type == want, at, f"{name} is {have.type}, not {want}")
    for result, buffer in call.updates:
        output = function.outputs[call.results.index(result)]
        have, want = tensors[buffer].type, function.types[output.value]
        require(have == want, f"{where}.updates", f"{buffer} is {have}, its new value {want}")
