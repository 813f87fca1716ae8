"""Structural checks of values that may come from a file: every reference must resolve.

A file's types are checked when it is read; here is what types cannot say. Nothing in a file is ever
executed: operators are looked up among torch's registered ones, names are only ever data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import FileError
from .model import Call, Function, Model, Op
from .tensor import ITEM_BYTES, TensorType

IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*")
TARGET = re.compile(r"\w+\.\w+\.\w+")
MOST_ELEMENTS = 1 << 56


def require(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise FileError(f"{where}: {what}")


def verify_structure(model: Model) -> None:
    """Raises FileError naming the JSON path of the first thing that does not hold together."""
    functions = {f.name: f for f in model.functions}
    require(len(functions) == len(model.functions), "$.functions", "two functions share a name")
    for i, function in enumerate(model.functions):
        verify_function(function, f"$.functions[{i}]")
        require(len(function.outputs) > 0, f"$.functions[{i}].outputs", "at least one")
    parameters = {p.name for p in model.parameters}
    require(len(parameters) == len(model.parameters), "$.parameters", "two share a name")
    for i, parameter in enumerate(model.parameters):
        verify_type(parameter.type, f"$.parameters[{i}].type")
    known: set[str] = set()
    for i, item in enumerate(model.inputs):
        require(bool(IDENTIFIER.fullmatch(item.name)), f"$.inputs[{i}].name", "not an identifier")
        verify_type(item.type, f"$.inputs[{i}].type")
        known.add(item.name)
    for i, call in enumerate(model.calls):
        verify_call(call, f"$.calls[{i}]", functions, parameters, known)
        known.update(call.results)
    require(model.loss in known, "$.loss", f"no call makes {model.loss!r:.80}")
    for output in model.outputs:
        require(output in known, "$.outputs", f"no call makes {output!r:.80}")
    require(1 <= model.batch < 1 << 40, "$.batch", f"{model.batch} is not a batch size")
    inputs = {item.name for item in model.inputs}
    require(len(inputs) == len(model.inputs), "$.inputs", "two share a name")
    require(model.loss not in inputs, "$.loss", "an input of the batch")


def verify_type(type_: TensorType, where: str) -> None:
    require(type_.dtype in ITEM_BYTES, where, f"unknown element type {type_.dtype!r:.80}")
    require(all(size >= 0 for size in type_.shape), where, "negative size")
    require(type_.elements < MOST_ELEMENTS, where, "absurd size")


def verify_function(function: Function, where: str) -> None:
    """Single assignment, uses after definitions, everything in range."""
    require(bool(IDENTIFIER.fullmatch(function.name)), f"{where}.name", "not an identifier")
    count = len(function.types)
    for i, type_ in enumerate(function.types):
        verify_type(type_, f"{where}.types[{i}]")
    defined: set[int] = set()

    def define(values: Iterable[int], path: str) -> None:
        for value in values:
            require(0 <= value < count, path, f"no value {value}")
            require(value not in defined, path, f"value {value} is made twice")
            defined.add(value)

    define([i.value for i in function.inputs], f"{where}.inputs")
    require(0 <= function.forward <= len(function.ops), f"{where}.forward", "out of range")
    for i, op in enumerate(function.ops):
        if i == function.forward:
            _verify_outputs(function, defined, where)
            define(_tangents(function), f"{where}.outputs")
        verify_op(op, f"{where}.ops[{i}]", defined)
        define([r for r in op.results if r >= 0], f"{where}.ops[{i}].results")
    if function.forward == len(function.ops):
        _verify_outputs(function, defined, where)
        define(_tangents(function), f"{where}.outputs")
    ends = [i.gradient for i in function.inputs if i.gradient is not None]
    require(defined.issuperset(ends), f"{where}.inputs", "a gradient that nothing makes")


def _verify_outputs(function: Function, defined: set[int], where: str) -> None:
    for i, output in enumerate(function.outputs):
        at = f"{where}.outputs[{i}].value"
        require(output.value in defined, at, f"value {output.value} is not made in forward")


def _tangents(function: Function) -> list[int]:
    return [o.tangent for o in function.outputs if o.tangent is not None]


def verify_op(op: Op, where: str, defined: set[int]) -> None:
    require(
        bool(TARGET.fullmatch(op.target)), f"{where}.target", f"{op.target!r:.80} is no operator"
    )
    require(len(op.results) > 0, f"{where}.results", "at least one")
    require(all(r >= -1 for r in op.results), f"{where}.results", "-1 stands for none")
    require(all(IDENTIFIER.fullmatch(k) for k in op.kwargs), f"{where}.kwargs", "not identifiers")
    for value in op.operands():
        require(value in defined, f"{where}.args", f"value {value} is used before it is made")


def verify_call(
    call: Call, where: str, functions: dict[str, Function], parameters: set[str], known: set[str]
) -> None:
    require(call.function in functions, f"{where}.function", f"no function {call.function!r:.80}")
    function = functions[call.function]
    counts = (
        ("parameters", len(call.parameters), len(function.state_inputs())),
        ("arguments", len(call.arguments), len(function.activations())),
        ("results", len(call.results), len(function.outputs)),
    )
    for field, have, want in counts:
        require(have == want, f"{where}.{field}", f"{have} given, {call.function} has {want}")
    for name in call.parameters:
        require(name in parameters, f"{where}.parameters", f"no parameter {name!r:.80}")
    for name in call.arguments:
        require(name in known, f"{where}.arguments", f"{name!r:.80} is not made before")
    for name in call.results:
        require(bool(IDENTIFIER.fullmatch(name)), f"{where}.results", "not an identifier")
        require(name not in known, f"{where}.results", f"{name!r:.80} is made twice")
    for result, buffer in call.updates:
        require(result in call.results, f"{where}.updates", f"no result {result!r:.80}")
        require(buffer in parameters, f"{where}.updates", f"no buffer {buffer!r:.80}")
