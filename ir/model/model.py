"""A model as a short program: calls of functions, each function one joint graph of operators.

A `Function` holds forward and backward of one part of the model in one list of operators: the
first `forward` operators compute the outputs, the rest the gradients of its inputs from the
gradients of its outputs. Values are numbered per function; `types[v]` is the type of value `v`.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, Union, cast

import msgspec

from ..cached import cached_method
from .tensor import TensorType


class Ref(msgspec.Struct, frozen=True):
    """A use of value `value` among an operator's arguments."""

    value: int


# Literals that JSON lacks are strings with a kind in front: "dtype:float32", "float:-inf", "complex:1j".
if TYPE_CHECKING:
    Argument = Union[Ref, None, bool, int, float, str, tuple["Argument", ...]]  # noqa: UP007
else:
    Argument = Any  # a recursive union is more than msgspec reads: `argument_of` checks it


def argument_of(data: Any) -> Argument:
    """An argument as read from a file: lists become tuples, `{"value": n}` a `Ref`."""
    if isinstance(data, (list, tuple)):
        return tuple(argument_of(part) for part in cast("list[Any]", data))
    if isinstance(data, dict):
        fields = cast("dict[str, Any]", data)
        if set(fields) == {"value"} and type(fields["value"]) is int:
            return Ref(fields["value"])
    if data is None or isinstance(data, (Ref, bool, int, float, str)):
        return data
    raise ValueError(f"not an operator's argument: {data!r:.80}")


def complex_number(text: str) -> complex | None:
    """The number that `complex:` stands before, None where it is none."""
    try:
        return complex(text) if text.isascii() else None
    except ValueError:
        return None


class Op(msgspec.Struct, frozen=True, dict=True):
    """One operator: its target (`"aten.mm.default"`), literal arguments, and the values it makes.

    `results` has one entry per output of the target, -1 where an output is never used.
    `scope` is the module path inside the call and `line` the `file.py:12` of the model's code, for
    people; texts of functions leave lines out.
    """

    target: str
    args: tuple[Argument, ...]
    kwargs: dict[str, Argument]
    results: tuple[int, ...]
    scope: str = ""
    line: str = ""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "args", tuple(argument_of(a) for a in self.args))
        read = {k: argument_of(a) for k, a in self.kwargs.items()}
        msgspec.structs.force_setattr(self, "kwargs", read)

    def place(self) -> str:
        """`aten.mm.default at layers.0 (model.py:12)`, for people."""
        where = f" at {self.scope}" if self.scope else ""
        return f"{self.target}{where}" + (f" ({self.line})" if self.line else "")

    @cached_method
    def operands(self) -> tuple[int, ...]:
        """Values read, in order of appearance; a value used twice appears twice."""
        values: list[int] = []
        collect_refs(self.args, values)
        collect_refs(tuple(self.kwargs.values()), values)
        return tuple(values)


def collect_refs(argument: Argument, into: list[int]) -> None:
    if isinstance(argument, Ref):
        into.append(argument.value)
    elif isinstance(argument, tuple):
        for part in argument:
            collect_refs(part, into)


def map_refs(argument: Argument, change: Callable[[int], Argument]) -> Argument:
    """`argument` with every `Ref` replaced by `change(ref.value)`."""
    if isinstance(argument, Ref):
        return change(argument.value)
    if isinstance(argument, tuple):
        return tuple(map_refs(part, change) for part in argument)
    return argument


class Input(msgspec.Struct, frozen=True):
    """An input of a function. `gradient` is the value that holds d loss / d input, if any."""

    value: int
    kind: Literal["parameter", "buffer", "activation", "key"]
    name: str
    gradient: int | None = None


class Output(msgspec.Struct, frozen=True):
    """An output of a function. `tangent` is the value through which d loss / d output comes in."""

    value: int
    tangent: int | None = None


class Function(msgspec.Struct, frozen=True):
    """One distinct part of the model; inputs list parameters and buffers first, then activations.

    The `key` input, last when there is one, is a scalar that seeds the function's random operators.
    """

    name: str
    types: tuple[TensorType, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    ops: tuple[Op, ...]
    forward: int

    @property
    def differentiable(self) -> bool:
        return any(output.tangent is not None for output in self.outputs)

    @property
    def forward_ops(self) -> tuple[Op, ...]:
        return self.ops[: self.forward]

    @property
    def backward_ops(self) -> tuple[Op, ...]:
        return self.ops[self.forward :]

    def state_inputs(self) -> tuple[Input, ...]:
        """Inputs bound to parameters and buffers of the model."""
        return tuple(i for i in self.inputs if i.kind in ("parameter", "buffer"))

    def activations(self) -> tuple[Input, ...]:
        return tuple(i for i in self.inputs if i.kind == "activation")

    @property
    def random(self) -> bool:
        return any(i.kind == "key" for i in self.inputs)


class Call(msgspec.Struct, frozen=True):
    """One use of a function: `parameters` fill its state inputs, `arguments` its activations.

    `arguments` name model inputs or results of earlier calls; `updates` pairs a result with the
    buffer that takes its value after the step (running statistics).
    """

    function: str
    path: str
    parameters: tuple[str, ...]
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    updates: tuple[tuple[str, str], ...] = ()


class Parameter(msgspec.Struct, frozen=True):
    """A parameter, buffer or constant of the user's module, under its first qualified name.

    `aliases` are the other names under which the module reaches the same tensor (tied weights).
    """

    name: str
    type: TensorType
    kind: Literal["parameter", "buffer", "constant"]
    trainable: bool
    aliases: tuple[str, ...] = ()
    values: tuple[float, ...] | None = None


class ModelInput(msgspec.Struct, frozen=True):
    """A tensor of the batch; `path` says where the batch keeps it: `("input_ids",)`, `(0,)`."""

    name: str
    type: TensorType
    path: tuple[str | int, ...]
    batched: bool


class BatchConstant(msgspec.Struct, frozen=True):
    """A number, text or flag of the batch that a trace has as a constant, as Python writes it."""

    path: tuple[str | int, ...]
    text: str


class Model(msgspec.Struct, frozen=True):
    """A traced model: calls in order, functions by name, parameters by qualified name.

    `batch` is the size of dimension 0 of every batched input as traced; `loss` names a result.
    `outputs` name the results and inputs that the model's caller gets, where they were asked for.
    A trace in a model's own type does not tell its casts to that type from none: `half` is the same
    model traced in bfloat16, where that differs.
    """

    name: str
    functions: tuple[Function, ...]
    calls: tuple[Call, ...]
    parameters: tuple[Parameter, ...]
    inputs: tuple[ModelInput, ...]
    loss: str
    batch: int
    constants: tuple[BatchConstant, ...] = ()
    outputs: tuple[str, ...] = ()
    half: Model | None = None

    def __repr__(self) -> str:
        weights = sum(p.type.elements for p in self.parameters if p.kind == "parameter")
        return (
            f"<plait.Model {self.name}: {weights:,} parameters, {len(self.functions)} functions, "
            f"{len(self.calls)} calls, batch {self.batch}>"
        )

    def batch_only_calls(self) -> frozenset[int]:
        """Calls that depend on the batch alone: they run once per step, before any micro-batch."""
        functions = {f.name: f for f in self.functions}
        known = {i.name for i in self.inputs}
        batch_only: set[int] = set()
        for number, call in enumerate(self.calls):
            if not functions[call.function].differentiable and known.issuperset(call.arguments):
                batch_only.add(number)
                known.update(call.results)
        return frozenset(batch_only)

    @property
    def tokens(self) -> int:
        """Elements of the largest input of a batch; samples where no input is of the batch."""
        return max((i.type.elements for i in self.inputs if i.batched), default=self.batch)

    def fingerprint(self) -> str:
        """Identity of the model apart from batch and precision: parameters, operators, calls."""
        names = [(p.name, p.type.shape, p.aliases) for p in self.parameters]
        ops = [(f.name, [(op.target, op.scope) for op in f.ops]) for f in self.functions]
        calls = [(c.function, c.path, c.parameters) for c in self.calls]
        return sha256(msgspec.json.encode((names, ops, calls))).hexdigest()[:16]

    def function(self, name: str) -> Function:
        return next(f for f in self.functions if f.name == name)

    def parameter(self, name: str) -> Parameter:
        return next(p for p in self.parameters if p.name == name)


class GraphHalves(msgspec.Struct, frozen=True):
    """The two halves: `forward` operators compute the outputs and `saved`, `backward` the gradients.

    Both number values as the function does. `saved` has no parameters or buffers: they stay.
    """

    forward: tuple[Op, ...]
    backward: tuple[Op, ...]
    saved: tuple[int, ...]


class BackwardParts(msgspec.Struct, frozen=True):
    """Backward in two parts: `inputs` operators compute the gradients of activations, `weights` those of
    parameters, from the `saved` values, of forward or of `inputs`.

    Both number values as the function does. `saved` has no parameters or buffers: they stay.
    """

    inputs: tuple[Op, ...]
    weights: tuple[Op, ...]
    saved: tuple[int, ...]

    def reads_states(self, function: Function) -> bool:
        """Whether `weights` reads parameters or buffers of the function."""
        states = {i.value for i in function.state_inputs()}
        return any(not states.isdisjoint(op.operands()) for op in self.weights)


class LocalLists(msgspec.Struct, frozen=True):
    """A per-device function and the lists of operators that a program runs of it."""

    function: Function
    halves: GraphHalves
    parts: BackwardParts | None = None
