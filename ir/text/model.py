"""Text of a model, which `parse_model` reads back: calls, functions, then parameters.

    model Net batch 4                                     # 32 parameters
      input x : f32[4 4] batched
      h = linear(x)  @layers.0
      y = linear(h)  @layers.1
        with shared.w
      loss y

    function linear
      ...

    parameters
      parameter layers.0.w : f32[4 4] trained
      parameter shared.w : f32[4 4] trained aliases layers.1.w

Inputs of a function are named after parameters (`w` after `layers.0.w` in a call of `layers.0`); where a
call has other parameters, `with` lists them. `update` lines name the buffers that a call's results
replace after the step. `constant` lines follow the inputs where the batch has numbers, texts or flags,
`outputs` the loss where the caller's results were asked for; `half` begins the model as traced in
bfloat16, where that differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from ..model.model import Argument, BatchConstant, Call, Function, Model, ModelInput, Parameter
from .function import (
    print_argument,
    print_function,
    print_type,
    read_argument,
    read_function,
    read_type,
)
from .lexer import RESERVED, TextReader, name_text, quoted
from .summary import calls_of, contents, count, parameters

STATEMENT_RESERVED = frozenset(
    {*RESERVED, "input", "constant", "loss", "with", "update", "outputs", "function"}
)
PARAMETER_KINDS = ("parameter", "buffer", "constant")


def print_model(model: Model) -> str:
    """A model in full."""
    lines = [f"model {name_text(model.name)} batch {model.batch}  # {contents(model)}"]
    lines += [f"  {_input(item)}" for item in model.inputs]
    lines += [f"  constant {print_argument(c.path)} = {quoted(c.text)}" for c in model.constants]
    names = [p.name for p in model.parameters]
    for call in model.calls:
        function = next((f for f in model.functions if f.name == call.function), None)
        lines += _call(call, None if function is None else _usual(function, call.path, names))
    lines.append(f"  loss {name_text(model.loss)}")
    if model.outputs:
        lines.append(f"  outputs {' '.join(map(name_text, model.outputs))}")
    for function in model.functions:
        elements = sum(function.types[i.value].elements for i in function.state_inputs())
        note = f"called {calls_of(model, function.name)} times, {count(elements)} parameters"
        lines += ["", print_function(function, note)]
    if model.parameters:
        lines += ["", f"parameters  # {count(parameters(model))}"]
    lines += [f"  {_parameter(parameter)}" for parameter in model.parameters]
    if model.half is not None:
        lines += ["", f"half {print_model(model.half)}"]
    return "\n".join(lines)


def _input(item: ModelInput) -> str:
    path = "" if item.path == (item.name,) else f" at {print_argument(item.path)}"
    batched = " batched" if item.batched else ""
    return f"input {name_text(item.name)} : {print_type(item.type)}{batched}{path}"


def _call(call: Call, usual: tuple[str, ...] | None) -> Iterator[str]:
    results = ", ".join(name_text(r, STATEMENT_RESERVED) for r in call.results)
    arguments = ", ".join(map(name_text, call.arguments))
    path = f"  @{name_text(call.path)}" if call.path else ""
    target = name_text(call.function, STATEMENT_RESERVED)
    yield f"  {results}{' = ' if results else ''}{target}({arguments}){path}"
    if call.parameters != usual:
        yield f"    with {' '.join(map(name_text, call.parameters))}".rstrip()
    for result, buffer in call.updates:
        yield f"    update {name_text(buffer)} = {name_text(result)}"


def _usual(function: Function, path: str, names: list[str]) -> tuple[str, ...] | None:
    """The parameters that a function's inputs are named after, under a call's path or anywhere."""
    by_name: dict[str, str] = {}
    for prefix in (f"{path}.", ""):
        for name in names:
            if name.startswith(prefix):
                by_name.setdefault(_identifier(name.removeprefix(prefix)), name)
    wanted = [i.name for i in function.state_inputs()]
    return tuple(by_name[n] for n in wanted) if all(n in by_name for n in wanted) else None


def _identifier(name: str) -> str:
    """A parameter's name as the name of an input: `mlp.c_fc.weight` as `mlp_c_fc_weight`."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")


def _parameter(parameter: Parameter) -> str:
    parts = [f"{parameter.kind} {name_text(parameter.name)} : {print_type(parameter.type)}"]
    if parameter.trainable:
        parts.append("trained")
    if parameter.aliases:
        parts.append(f"aliases {print_argument(parameter.aliases)}")
    if parameter.values is not None:
        parts.append(f"values {print_argument(parameter.values)}")
    return " ".join(parts)


def parse_model(text: str) -> Model:
    """Read what `print_model` wrote; raises FileError with line and column."""
    reader = TextReader(text)
    model = _read_model(reader)
    if reader.accept("half"):
        model = replace(model, half=_read_model(reader))
    reader.end()
    return model


def _read_model(reader: TextReader) -> Model:
    reader.expect("model")
    name = reader.name("the model's name")
    reader.expect("batch")
    batch = reader.integer("the batch size")
    reader.end_line()
    inputs = list[ModelInput]()
    while reader.accept("input"):
        inputs.append(_read_input(reader))
    constants = list[BatchConstant]()
    while reader.accept("constant"):
        constants.append(_read_constant(reader))
    calls = list[_CallText]()
    while not reader.accept("loss"):
        calls.append(_read_call(reader))
    loss = reader.name("the value of the loss")
    reader.end_line()
    outputs = _listed(reader) if reader.accept("outputs") else ()
    functions = list[Function]()
    while reader.sees("function"):
        functions.append(read_function(reader))
    state = list[Parameter]()
    if reader.accept("parameters"):
        reader.end_line()
        while reader.sees(*PARAMETER_KINDS):
            state.append(_read_parameter(reader))
    names = [p.name for p in state]
    bound = tuple(_bound(call, functions, names, reader) for call in calls)
    traced = (tuple(functions), bound, tuple(state), tuple(inputs))
    return Model(name, *traced, loss, batch, tuple(constants), outputs)


class _CallText(NamedTuple):
    """A call as written: `parameters` is None where none are listed; `at` is its first token."""

    call: Call
    parameters: tuple[str, ...] | None
    at: int


def _bound(
    written: _CallText, functions: list[Function], names: list[str], reader: TextReader
) -> Call:
    """The call with its parameters; raises FileError where their names say too little."""
    call, parameters = written.call, written.parameters
    if parameters is None:
        function = next((f for f in functions if f.name == call.function), None)
        parameters = None if function is None else _usual(function, call.path, names)
    if parameters is None:
        reader.at = written.at
        reader.fail(
            f"a function of the text whose inputs name parameters, or `with` below {call.function!r},"
        )
    return replace(call, parameters=parameters)


def _read_input(reader: TextReader) -> ModelInput:
    name = reader.name("the input's name")
    reader.expect(":")
    type_ = read_type(reader)
    batched = reader.accept("batched")
    path: Argument = read_argument(reader) if reader.accept("at") else (name,)
    if not isinstance(path, tuple):
        reader.fail("a path in the batch")
    reader.end_line()
    return ModelInput(name, type_, path, batched)  # type: ignore[arg-type]


def _read_constant(reader: TextReader) -> BatchConstant:
    path: Argument = read_argument(reader)
    if not isinstance(path, tuple):
        reader.fail("a path in the batch")
    reader.expect("=")
    text = reader.name("the constant's text")
    reader.end_line()
    return BatchConstant(path, text)  # type: ignore[arg-type]


def _read_call(reader: TextReader) -> _CallText:
    at = reader.at
    names = reader.names("a value")
    if reader.accept("="):
        function = reader.name("a function")
    elif len(names) == 1:
        names, function = (), names[0]
    else:
        reader.fail("'='")
    reader.expect("(")
    arguments = () if reader.sees(")") else reader.names("an argument")
    reader.expect(")")
    path = reader.name("a module path") if reader.accept("@") else ""
    reader.end_line()
    parameters = _listed(reader) if reader.accept("with") else None
    updates = list[tuple[str, str]]()
    while reader.accept("update"):
        buffer = reader.name("a buffer")
        reader.expect("=")
        updates.append((reader.name("a result"), buffer))
        reader.end_line()
    return _CallText(Call(function, path, (), arguments, names, tuple(updates)), parameters, at)


def _listed(reader: TextReader) -> tuple[str, ...]:
    names = list[str]()
    while reader.next.kind != "newline":
        names.append(reader.name("a name"))
    reader.end_line()
    return tuple(names)


def _read_parameter(reader: TextReader) -> Parameter:
    kind = reader.take().text
    name = reader.name("the parameter's name")
    reader.expect(":")
    type_ = read_type(reader)
    trained = reader.accept("trained")
    aliases = _read_tuple(reader) if reader.accept("aliases") else ()
    values = _read_tuple(reader) if reader.accept("values") else None
    reader.end_line()
    return Parameter(name, type_, kind, trained, aliases, values)  # type: ignore[arg-type]


def _read_tuple(reader: TextReader) -> tuple[Argument, ...]:
    parts = read_argument(reader)
    if not isinstance(parts, tuple):
        reader.fail("a list in brackets")
    return parts
