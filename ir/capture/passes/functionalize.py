"""Read a recorded torch.fx graph into a flat `Graph` of pure operators.

In-place operators become functional: every later use of the written tensor, or of a view of the
same memory, reads the new value. Regions without gradients get `detach`; batch norm's hidden update
of its running statistics becomes explicit.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ...errors import TraceError
from ...model import Argument, Parameter, Ref
from ...tensor import TensorType
from ..export import ROOT, Recording
from ..graph import KEY_TYPE, Graph
from ..literals import PLACEMENT, dtype_name, encode, tensor_type
from ..operators.batch_norm import batch_norm
from ..resolve import overload
from .mutation import DETACH, Memory

MAXIMUM_CONSTANT = 65_536
ASSERTS = (
    "aten._assert_tensor_metadata.default",
    "aten._assert_async.msg",
    "aten._assert_async.default",
)
SEEDED = ("aten.dropout.default", "aten.scaled_dot_product_attention.default")
# Random only when their dropout, argument 5, is not zero.
RECURRENT = tuple(f"aten.{name}.input" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))
RENAMED = {"aten.transpose.default": "aten.transpose.int"}
COMPOSITE_RANDOM = (
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "rrelu",
    "native_dropout",
)


class Unsupported(Exception):
    """Node `index` of the recording cannot be expressed; the caller knows how to find its line."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def read(recording: Recording) -> Graph:
    """The recording as a flat graph with its loss; raises Unsupported or TraceError."""
    graph, outputs = read_outputs(recording)
    (graph.loss,) = outputs
    return graph


def read_outputs(recording: Recording) -> tuple[Graph, tuple[int, ...]]:
    """The same for a recording with any number of outputs."""
    reader = _Reader(recording)
    for index, node in enumerate(recording.graph.graph.nodes):
        try:
            reader.step(node)
        except TraceError as error:
            raise Unsupported(index, str(error)) from error
    return reader.finish(), reader.outputs


class _Reader:
    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.graph = Graph()
        self.memory = Memory(self.graph)
        self.env: dict[fx.Node, int | tuple[int, ...]] = {}
        self.constants: dict[str, int] = {}
        self.gradients = True
        self.outputs: tuple[int, ...] = ()
        self.scope = str(ROOT)
        held = recording.held
        self.placeholders: list[Any] = [*held, *recording.inputs]

    def finish(self) -> Graph:
        graph = self.graph
        graph.key = graph.value(KEY_TYPE)
        for value, parameter in list(graph.parameters.items()):
            last = self.memory.resolve(value)
            if last != value:
                graph.updates[parameter.name] = last
        return graph

    def step(self, node: fx.Node) -> None:
        custom = node.meta.get("custom") or {}
        self.scope = str(custom.get("invocation", ROOT))
        if node.op == "placeholder":
            self.env[node] = self.placeholder()
        elif node.op == "get_attr":
            self.env[node] = self.constant(str(node.target))
        elif node.op == "output":
            self.outputs = tuple(self.memory.resolve(self.single(n)) for n in _flat(node.args))
        elif node.target is operator.getitem:
            source, position = node.args
            made = self.env[source]  # type: ignore[index]
            assert isinstance(made, tuple)
            self.env[node] = made[position]  # type: ignore[index]
        elif isinstance(node.target, torch._ops.OpOverload):
            self.operator(node, node.target)
        else:
            self.state(node)

    def placeholder(self) -> int:
        item = self.placeholders.pop(0)
        value = self.graph.value(item.type)
        if isinstance(item, Parameter):
            self.graph.parameters[value] = item
            if item.trainable:
                self.graph.trainable.add(value)
                self.memory.carrying.add(value)
        else:
            self.graph.inputs[value] = item
        return value

    def constant(self, name: str) -> int:
        """A tensor that the model's code made from Python numbers, or keeps unregistered."""
        if name in self.constants:
            return self.constants[name]
        tensor = getattr(self.recording.graph, name)
        type_ = tensor_type(tensor)
        if type_.elements > MAXIMUM_CONSTANT:
            raise TraceError(
                f"the model uses a tensor of {type_.elements} elements that is neither a parameter "
                f"nor a buffer (at most {MAXIMUM_CONSTANT} are kept); use register_buffer"
            )
        if tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
            raise TraceError(
                "the model uses a tensor without values that is neither a parameter nor a buffer; "
                "use register_buffer"
            )
        values = tuple(tensor.detach().cpu().reshape(-1).tolist())
        taken = {p.name for p in self.recording.held}
        number = len(self.constants)
        while f"constant_{number}" in taken:
            number += 1
        value = self.graph.value(type_)
        constant = Parameter(f"constant_{number}", type_, "constant", False, (), values)
        self.graph.parameters[value] = constant
        self.constants[name] = value
        return value

    def state(self, node: fx.Node) -> None:
        """Changes of torch's modes that the forward made."""
        name = getattr(node.target, "__name__", str(node.target))
        if name == "_set_grad_enabled":
            self.gradients = bool(node.args[0])
        elif name == "_enter_autocast":
            if node.args[-2 if len(node.args) > 3 else -1] is True:
                raise TraceError(
                    "torch.autocast inside the model is not supported; remove it and plan with "
                    "precision='bf16'"
                )
        elif name not in ("_exit_autocast", "sym_size"):
            raise TraceError(f"the call of {name} inside the model is not supported")

    # values

    def single(self, argument: Any) -> int:
        while isinstance(argument, list | tuple):
            (argument,) = argument
        value = self.env[argument]
        assert isinstance(value, int)
        return value

    def use(self, argument: Any) -> Ref | None:
        if isinstance(argument, fx.Node):
            return Ref(self.memory.resolve(self.single(argument)))
        return None

    # operators

    def operator(self, node: fx.Node, target: torch._ops.OpOverload) -> None:
        name = str(target)
        if name in ASSERTS:
            return
        self.refuse_random(node, target)
        args = tuple(encode(a, self.use) for a in node.args)
        kwargs = {k: encode(a, self.use) for k, a in node.kwargs.items() if k not in PLACEMENT}
        if target._schema.is_mutable:
            self.write(node, target, args, kwargs)
            return
        if name.startswith("aten.to."):
            name, args, kwargs = _cast(node, args)
        elif name == "aten.batch_norm.default" and args[5] is True:
            self.env[node] = self.batch_norm(node, args)
            return
        elif name == "aten.instance_norm.default" and args[5] is True and args[3] is not None:
            raise TraceError("instance norm with running statistics is not supported")
        kwargs = {k: a for k, a in kwargs.items() if a is not None}
        self.env[node] = self.emit(node, name, args, kwargs)

    def refuse_random(self, node: fx.Node, target: torch._ops.OpOverload) -> None:
        name = str(target)
        seeded = torch.Tag.nondeterministic_seeded in target.tags
        if name in SEEDED or name.startswith("aten.dropout_."):
            return
        if name in RECURRENT and node.args[5] == 0:
            return
        if name == "aten.rand.default" and _is_chance(node):
            return
        if seeded or target._opname in COMPOSITE_RANDOM:
            raise TraceError(
                f"random operator {name} is not supported: only nn.Dropout, the dropout of "
                "scaled_dot_product_attention and stochastic depth can be reproduced under every "
                "plan; set its rate to 0"
            )

    def emit(
        self, node: fx.Node, name: str, args: tuple[Argument, ...], kwargs: dict[str, Argument]
    ) -> int | tuple[int, ...]:
        made = node.meta["val"]
        several = isinstance(made, list | tuple)
        parts = list(made) if several else [made]
        if not all(part is None or isinstance(part, torch.Tensor) for part in parts):
            raise TraceError(f"operator {name} gives something that is no tensor")
        types = tuple(None if part is None else tensor_type(part) for part in parts)
        results = self.memory.emit(name, args, types, kwargs, self.scope)
        op = self.graph.ops[-1]
        results = self.apply_gradient_mode(results, name)
        for position, (value, part) in enumerate(zip(results, parts, strict=True)):
            for argument in node.all_input_nodes:
                if part is not None and _is_view(node, argument, part):
                    self.memory.view(value, self.single(argument), op, position)
        return results if several else results[0]

    def apply_gradient_mode(self, results: tuple[int, ...], name: str) -> tuple[int, ...]:
        """Inside no_grad a result is a constant to the outside."""
        if self.gradients or name == DETACH:
            return results
        return tuple(self.memory.detached(r, self.scope) for r in results)

    # writes

    def write(
        self,
        node: fx.Node,
        target: torch._ops.OpOverload,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
    ) -> None:
        """`x.op_(y)`: the functional operator, then everybody sees its result as x."""
        written = node.args[0]
        arguments = target._schema.arguments
        writes = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
        if not isinstance(written, fx.Node) or writes != [True] + [False] * (len(arguments) - 1):
            raise TraceError(
                f"in-place operator {target} is not supported; use the out-of-place form"
            )
        if torch.Tag.inplace_view in target.tags:
            self.env[node] = self.env[written] = self.turned(node, target, args, kwargs)
            return
        self.env[node] = self.env[written]
        if target._opname == "detach_":
            return
        tensor = self.single(written)
        value = self.functional(node, target, args, kwargs, self.graph.types[tensor])
        value = self.memory.cast(value, self.graph.types[tensor].dtype, self.scope)
        self.memory.assign(tensor, value, self.scope)

    def turned(
        self,
        node: fx.Node,
        target: torch._ops.OpOverload,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
    ) -> int:
        """`x.transpose_()` and the like: the name now stands for a view of what it was."""
        base = target._opname.removesuffix("_")
        name = f"{target.namespace}.{base}.{target._overloadname}"
        name = RENAMED.get(name, name)
        if overload(name) is None:
            raise TraceError(f"in-place operator {target} is not supported")
        (made,) = self.memory.emit(name, args, (tensor_type(node.meta["val"]),), kwargs, self.scope)
        self.memory.view(made, self.single(node.args[0]), self.graph.ops[-1], 0)
        return made

    def functional(
        self,
        node: fx.Node,
        target: torch._ops.OpOverload,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
        type_: TensorType,
    ) -> int:
        """The value written, of the target's shape, not always of its element type yet."""
        base = target._opname.removesuffix("_")
        if base in ("copy", "fill", "zero"):
            return self.filled(args, type_)
        name = f"{target.namespace}.{base}.{target._overloadname}"
        if overload(name) is None:
            raise TraceError(
                f"in-place operator {target} is not supported; use the out-of-place form"
            )
        kind = TensorType(type_.shape, _promoted(node, base, type_.dtype))
        made = self.memory.emit(name, args, (kind,), kwargs, self.scope)
        return self.apply_gradient_mode(made, name)[0]

    def filled(self, args: tuple[Argument, ...], type_: TensorType) -> int:
        """What `copy_`, `fill_` and `zero_` leave in a tensor of that type."""
        memory, scope = self.memory, self.scope
        source = args[1] if len(args) > 1 else 0
        if not isinstance(source, Ref):
            return memory.emit("aten.full_like.default", (args[0], source), (type_,), None, scope)[
                0
            ]
        value = memory.cast(source.value, type_.dtype, scope)
        if self.graph.types[value].shape != type_.shape:
            args = (Ref(value), tuple(type_.shape))
            (value,) = memory.emit("aten.expand.default", args, (type_,), None, scope)
        return value if self.gradients else memory.detached(value, scope)

    def batch_norm(self, node: fx.Node, args: tuple[Argument, ...]) -> int:
        given = node.args[3:5]
        held = [self.single(n) for n in given if isinstance(n, fx.Node)]
        running = (held[0], held[1]) if len(held) == 2 else None
        return batch_norm(self.memory, self.single(node.args[0]), args, running, self.scope)


def _is_chance(node: fx.Node) -> bool:
    """Whether random numbers are used for floor(keep + rand) alone, as `rewrite` expects."""
    sums = list(node.users)
    ends = [user for made in sums for user in made.users]
    names = [str(end.target) for end in ends[:1]]
    return [str(s.target) for s in sums] == ["aten.add.Tensor"] and names in (
        ["aten.floor_.default"],
        ["aten.floor.default"],
    )


def _is_view(node: fx.Node, argument: fx.Node, made: torch.Tensor) -> bool:
    """Whether a result shares the memory of an argument."""
    source = argument.meta.get("val")
    if not isinstance(source, torch.Tensor) or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if not any(r.alias_info is not None for r in node.target._schema.returns):
        return False
    return made.untyped_storage()._cdata == source.untyped_storage()._cdata


def _promoted(node: fx.Node, base: str, dtype: str) -> str:
    """The element type that the out-of-place form of an arithmetic operator gives."""
    if base not in ("add", "sub", "mul", "div", "pow"):
        return dtype
    for argument in node.all_input_nodes:
        other = argument.meta.get("val")
        if isinstance(other, torch.Tensor) and other.dim() > 0:
            dtype = dtype_name(torch.promote_types(getattr(torch, dtype), other.dtype))
    return dtype


def _cast(
    node: fx.Node, args: tuple[Argument, ...]
) -> tuple[str, tuple[Argument, ...], dict[str, Argument]]:
    """Every overload of `to` is a change of element type; devices are the plan's business."""
    return (
        "aten._to_copy.default",
        args[:1],
        {"dtype": f"dtype:{dtype_name(node.meta['val'].dtype)}"},
    )


def _flat(argument: Any) -> list[fx.Node]:
    if isinstance(argument, list | tuple):
        return [node for part in argument for node in _flat(part)]
    return [argument] if isinstance(argument, fx.Node) else []
