"""Text of functions and operators, which `parse_function` reads back.

function linear                                       # called 2 times
  parameter %0 w : f32[4 4] gradient %4
  activation %1 x : f32[4 4]
  %2 = aten.mm.default %1 %0 : f32[4 4]  @layer
  output %2 tangent %3 : f32[4 4]
  backward
  %4, _ = aten.sum.dim %3 [0 -1] true dtype=dtype:float32 : f32[4 4]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..model.model import (
    Argument,
    BackwardParts,
    Function,
    GraphHalves,
    Input,
    LocalLists,
    Op,
    Output,
    Ref,
)
from ..model.tensor import SHORT, TensorType
from .lexer import RESERVED, TextReader, located, name_text

LONG = {short: dtype for dtype, short in SHORT.items()}
KINDS = ("parameter", "buffer", "activation", "key")
STATEMENTS = (*KINDS, "output", "backward", "unused")
SECTIONS = ("function", "parameters", "half")  # what may follow a function in a model's text
TARGET_RESERVED = frozenset({*RESERVED, *STATEMENTS, *SECTIONS, "forward", "saved"})
UNUSED = "_"


def print_function(function: Function, note: str = "") -> str:
    """A function in full; `note` becomes a comment on its first line."""
    return "\n".join([*_head("function", function.name, note), *_body(function)])


def parse_function(text: str) -> Function:
    """Read what `print_function` wrote; raises FileError with line and column."""
    reader = TextReader(text)
    function = read_function(reader)
    reader.end()
    return function


def print_halves(halves: GraphHalves, types: Sequence[TensorType] = ()) -> str:
    """The forward and backward operators of a partitioned function, and what is saved between them.
    Without the function's `types` they have none."""
    saved = " ".join(f"%{value}" for value in halves.saved)
    return "\n".join(
        [
            "forward",
            *(f"  {print_op(op, types)}" for op in halves.forward),
            f"saved {saved}".rstrip(),
            "backward",
            *(f"  {print_op(op, types)}" for op in halves.backward),
        ]
    )


def print_backward_parts(parts: BackwardParts, types: Sequence[TensorType] = ()) -> str:
    """The operators of both parts of backward, and what is saved between them."""
    saved = " ".join(f"%{value}" for value in parts.saved)
    return "\n".join(
        [
            "inputs",
            *(f"  {print_op(op, types)}" for op in parts.inputs),
            f"saved {saved}".rstrip(),
            "weights",
            *(f"  {print_op(op, types)}" for op in parts.weights),
        ]
    )


def print_local_lists(lists: LocalLists) -> str:
    """The operators that a program runs of a function, in order."""
    types = lists.function.types
    if lists.parts is None:
        return print_halves(lists.halves, types)
    forward = ["forward", *(f"  {print_op(op, types)}" for op in lists.halves.forward)]
    return "\n".join([*forward, print_backward_parts(lists.parts, types)])


def parse_halves(text: str) -> GraphHalves:
    """Read what `print_halves` wrote; raises FileError with line and column."""
    reader, types = TextReader(text), dict[int, TensorType]()
    reader.expect("forward")
    reader.end_line()
    forward = list[Op]()
    while not reader.accept("saved"):
        forward.append(_read_op(reader, types, typed=False))
    saved = list[int]()
    while reader.next.kind == "value":
        saved.append(reader.value())
    reader.end_line()
    reader.expect("backward")
    reader.end_line()
    backward = list[Op]()
    while reader.next.kind != "end":
        backward.append(_read_op(reader, types, typed=False))
    return GraphHalves(tuple(forward), tuple(backward), tuple(saved))


def print_op(op: Op, types: Sequence[TensorType]) -> str:
    """`%3 = aten.mm.default %2 %1 : f32[8 4]  @mlp`."""
    parts = [name_text(op.target, TARGET_RESERVED), *map(print_argument, op.args)]
    parts += [f"{name_text(name)}={print_argument(a)}" for name, a in op.kwargs.items()]
    if op.results:
        parts[:0] = [", ".join(f"%{r}" if r >= 0 else UNUSED for r in op.results), "="]
    made = [print_type(types[r]) for r in op.results if r >= 0 and types]
    if made:
        parts.append(": " + ", ".join(made))
    return " ".join(parts) + (f"  @{name_text(op.scope)}" if op.scope else "")


def print_argument(argument: Argument) -> str:
    """`%3`, `none`, `true`, `2`, `1.0`, `dtype:float32`, `[0 -1]`."""
    if isinstance(argument, Ref):
        return f"%{argument.value}"
    if isinstance(argument, tuple):
        return f"[{' '.join(map(print_argument, argument))}]"
    if isinstance(argument, str):
        return name_text(argument)
    if argument is None:
        return "none"
    return str(argument).lower() if isinstance(argument, bool) else repr(argument)


def print_type(type_: TensorType) -> str:
    """`f32[8 4]`."""
    short = SHORT.get(type_.dtype)
    dtype = short or name_text(type_.dtype, RESERVED | LONG.keys())
    return f"{dtype}[{' '.join(map(str, type_.shape))}]"


def _head(kind: str, name: str, note: str) -> Iterator[str]:
    yield f"{kind} {name_text(name)}" + (f"  # {note}" if note else "")


def _body(function: Function) -> Iterator[str]:
    types = function.types
    for item in function.inputs:
        gradient = "" if item.gradient is None else f" gradient %{item.gradient}"
        type_ = print_type(types[item.value])
        yield f"  {item.kind} %{item.value} {name_text(item.name)} : {type_}{gradient}"
    for value in sorted(set(range(len(types))) - _defined(function)):
        yield f"  unused %{value} : {print_type(types[value])}"
    yield from (f"  {print_op(op, types)}" for op in function.forward_ops)
    for output in function.outputs:
        tangent = output.tangent
        suffix = "" if tangent is None else f" tangent %{tangent} : {print_type(types[tangent])}"
        yield f"  output %{output.value}{suffix}"
    if function.backward_ops:
        yield "  backward"
    yield from (f"  {print_op(op, types)}" for op in function.backward_ops)


def _defined(function: Function) -> set[int]:
    """Values whose types other lines of the text give."""
    return (
        {i.value for i in function.inputs}
        | {o.tangent for o in function.outputs if o.tangent is not None}
        | {r for op in function.ops for r in op.results if r >= 0}
    )


def read_function(reader: TextReader) -> Function:
    """Read a function up to the next thing that is none of its lines."""
    reader.expect("function")
    return _FunctionReader(reader).read()


class _FunctionReader:
    def __init__(self, reader: TextReader) -> None:
        self.reader = reader
        self.types: dict[int, TensorType] = {}

    def read(self) -> Function:
        reader = self.reader
        name = reader.name("the function's name")
        first = reader.next
        reader.end_line()
        inputs, outputs, ops = list[Input](), list[Output](), list[Op]()
        forward: int | None = None
        while reader.next.kind != "end" and not reader.sees(*SECTIONS):
            if reader.sees(*KINDS):
                inputs.append(self.input())
            elif reader.accept("output"):
                outputs.append(self.output())
            elif reader.accept("unused"):
                self.define(reader.value())
                reader.end_line()
            elif forward is None and reader.accept("backward"):
                reader.end_line()
                forward = len(ops)
            else:
                ops.append(_read_op(reader, self.types))
        count = len(ops) if forward is None else forward
        return Function(
            name,
            tuple(_in_order(self.types, first.line)),
            tuple(inputs),
            tuple(outputs),
            tuple(ops),
            count,
        )

    def input(self) -> Input:
        """`parameter %0 w : f32[4 4] gradient %4`."""
        reader = self.reader
        kind = reader.take().text
        value = reader.value()
        name = reader.name("the input's name")
        self.define(value)
        gradient = reader.value() if reader.accept("gradient") else None
        reader.end_line()
        return Input(value, kind, name, gradient)  # type: ignore[arg-type]

    def output(self) -> Output:
        """`%2 tangent %3 : f32[4 4]`."""
        value, tangent = self.reader.value(), None
        if self.reader.accept("tangent"):
            tangent = self.reader.value()
            self.define(tangent)
        self.reader.end_line()
        return Output(value, tangent)

    def define(self, value: int) -> None:
        """Read `: f32[4 4]`, the type of a value."""
        self.reader.expect(":")
        _define(self.reader, self.types, value)


def _define(reader: TextReader, types: dict[int, TensorType], value: int) -> None:
    if value in types:
        reader.fail(f"%{value} is defined already: another value")
    types[value] = read_type(reader)


def _in_order(types: dict[int, TensorType], line: int) -> Iterable[TensorType]:
    for value in range(len(types)):
        if value not in types:
            raise located(line, 1, f"the function's values skip %{value}")
        yield types[value]


def _read_op(reader: TextReader, types: dict[int, TensorType], typed: bool = True) -> Op:
    results = list[int]()
    if reader.next.kind == "value" or reader.sees(UNUSED):
        results.append(_result(reader))
        while reader.accept(","):
            results.append(_result(reader))
        reader.expect("=")
    target = reader.name("an operator")
    args, kwargs = list[Argument](), dict[str, Argument]()
    while not reader.sees(":", "@") and reader.next.kind != "newline":
        name = _keyword(reader)
        if name is not None:
            if name in kwargs:
                reader.fail(f"{name} is given already: another argument")
            kwargs[name] = read_argument(reader)
        elif kwargs:
            reader.fail("a keyword argument")
        else:
            args.append(read_argument(reader))
    made = [r for r in results if r >= 0]
    if typed or reader.sees(":"):
        for number, value in enumerate(made):
            reader.expect("," if number else ":")
            _define(reader, types, value)
    scope = reader.name("a module path") if reader.accept("@") else ""
    reader.end_line()
    return Op(target, tuple(args), kwargs, tuple(results), scope)


def _result(reader: TextReader) -> int:
    return -1 if reader.accept(UNUSED) else reader.value()


def _keyword(reader: TextReader) -> str | None:
    """The name in `name=`, or None where no keyword argument follows."""
    following = reader.tokens[min(reader.at + 1, len(reader.tokens) - 1)]
    if (following.kind, following.text) != ("mark", "="):
        return None
    name = reader.name("an argument's name")
    reader.expect("=")
    return name


def read_argument(reader: TextReader) -> Argument:
    """An argument as `print_argument` writes it."""
    kind = reader.next.kind
    if kind == "value":
        return Ref(reader.value())
    if kind == "number":
        return reader.number()
    if reader.sees("inf", "nan"):
        return float(reader.take().text)
    if reader.sees("none", "true", "false"):
        return reader.flag()
    if reader.accept("["):
        parts = list[Argument]()
        while not reader.accept("]"):
            parts.append(read_argument(reader))
        return tuple(parts)
    return reader.name("an argument")


def read_type(reader: TextReader) -> TensorType:
    """A tensor type as `print_type` writes it."""
    bare = reader.next.kind == "word"
    dtype = reader.name("a type such as f32[8 4]")
    reader.expect("[")
    shape = list[int]()
    while not reader.accept("]"):
        shape.append(reader.integer("a size"))
    return TensorType(tuple(shape), LONG.get(dtype, dtype) if bare else dtype)
