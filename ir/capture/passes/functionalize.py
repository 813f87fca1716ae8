"""Read a recorded torch.fx graph into a flat `FlatGraph` of pure operators.

In-place operators become functional: later uses of the written tensor, and of views of its
memory, read the new value. Regions without gradients get `detach`; batch norm's hidden update
of its running statistics becomes explicit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...errors import TraceError
from ...model.model import Argument, Parameter, Ref
from ...model.tensor import TensorType
from ...passes import Pass
from ..decompositions.draws import DRAWS
from ..export import ROOT, Recording
from ..graph import KEY_TYPE, FlatGraph
from ..literals import PLACEMENT, dtype_name, encode, tensor_type
from ..operators.batch_norm import batch_norm
from ..operators.user_backward import USER_BACKWARD
from ..recorded.autocast import Regions
from ..recorded.joins import joined, merged
from ..recorded.nodes import cast, flat, functional_name, is_view, promoted
from ..resolve import overload
from ..torch_private import (
    ENTER_AUTOCAST,
    EXIT_AUTOCAST,
    SET_GRAD_ENABLED,
    OpOverload,
    base_name,
    is_operator,
    overload_name,
    schema,
)
from .constants import Constants, UnsupportedNode
from .element_types import refuse_mixed_products
from .mutation import DETACH, AliasTracker
from .rebinding import Rebinding
from .windows import STRIDED, windows

ASSERTS = (
    "aten._assert_tensor_metadata.default",
    "aten._assert_async.msg",
    "aten._assert_async.default",
)
SEEDED = ("aten.dropout.default", "aten.scaled_dot_product_attention.default")
# Random where dropout is not zero; `recurrent` makes it explicit.
RECURRENT = tuple(f"aten.{name}.input" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))
RENAMED = {"aten.transpose.default": "aten.transpose.int"}
COMPOSITE_RANDOM = (
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "rrelu",
    "native_dropout",
)


class Functionalize(Pass[Recording, FlatGraph], frozen=True):
    """Convert a recording to a flat graph with its loss. Raises UnsupportedNode, TraceError."""

    name = "functionalize"

    def apply(self, value: Recording) -> FlatGraph:
        graph = flat_graph(value)
        joins = [
            joined(graph, flat_graph(s.recording), s.branch.number, s.branch.side)
            for s in value.others
        ]
        merged(graph, joins)
        return graph


def flat_graph(recording: Recording) -> FlatGraph:
    """The graph of a recording as it is, with marks of branches."""
    reader = _Reader(recording)
    graph, outputs = _read(reader)
    graph.loss, *returned = outputs
    graph.returned = tuple(returned)
    reader.constants.refuse_trained()
    return graph


def read_outputs(recording: Recording) -> tuple[FlatGraph, tuple[int, ...]]:
    """The flat graph of a recording with any number of outputs, and these."""
    graph, outputs = _read(_Reader(recording))
    merged(graph, ())
    return graph, outputs


def _read(reader: _Reader) -> tuple[FlatGraph, tuple[int, ...]]:
    recording = reader.recording
    for index, node in enumerate(recording.graph.graph.nodes):
        try:
            if not any(reader.regions.open):  # autocast gives them one type
                refuse_mixed_products(node)
            reader.step(node)
        except TraceError as error:
            raise UnsupportedNode(index, str(error)) from error
    return reader.finish(), reader.outputs


class _Reader:
    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.graph = FlatGraph()
        self.aliases = AliasTracker(self.graph)
        self.values: dict[fx.Node, int | tuple[int, ...]] = {}
        self.constants = Constants(self)
        self.gradients, self.regions = True, Regions()
        self.outputs: tuple[int, ...] = ()
        self.scope, self.custom = str(ROOT), dict[str, Any]()
        self.rebinding = Rebinding(self)
        self.placeholders: list[Any] = [*recording.state_tensors, *recording.inputs]

    def finish(self) -> FlatGraph:
        graph = self.graph
        graph.key = graph.value(KEY_TYPE)
        for value, parameter in list(graph.parameters.items()):
            last = self.aliases.resolve(value)
            if last != value:
                graph.updates[parameter.name] = last
        return graph

    def step(self, node: fx.Node) -> None:
        self.custom = custom = node.meta.get("custom") or {}
        self.scope = self.recording.scope(custom)
        if "hooked_parameter" in custom:
            self.rebinding.defer(custom["hooked_parameter"], node)
        else:
            self.read(node)

    def read(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.values[node] = self.placeholder(node)
        elif node.op == "get_attr":
            self.values[node] = self.constants.value(node)
        elif node.op == "output":
            self.outputs = tuple(self.aliases.resolve(self.single(n)) for n in flat(node.args))
        elif node.target is operator.getitem:
            source, position = node.args
            results = self.values[source]  # type: ignore[index]
            assert isinstance(results, tuple)
            self.values[node] = results[position]  # type: ignore[index]
        elif is_operator(node.target):
            self.operator(node, node.target)
        else:
            self.mode_change(node)

    def placeholder(self, node: fx.Node) -> int:
        item = self.placeholders.pop(0)
        value = self.graph.value(item.type)
        if isinstance(item, Parameter):
            self.rebinding.names[node] = item.name
            self.graph.parameters[value] = item
            if item.trainable:
                self.graph.trainable.add(value)
                self.aliases.carrying.add(value)
        else:
            self.graph.inputs[value] = item
        return value

    def mode_change(self, node: fx.Node) -> None:
        """Follow a change of torch's gradient mode, and regions of autocast."""
        name = getattr(node.target, "__name__", str(node.target))
        if name == SET_GRAD_ENABLED:
            self.gradients = bool(node.args[0])
        elif name == ENTER_AUTOCAST:
            self.regions.enter(node)
        elif name == EXIT_AUTOCAST:
            self.regions.leave()
        elif name != "sym_size":
            raise TraceError(f"the call of {name} inside the model is not supported")

    # values

    def single(self, argument: Any) -> int:
        while isinstance(argument, list | tuple):
            (argument,) = argument
        value = self.values[argument]
        assert isinstance(value, int)
        return value

    def use(self, argument: Any) -> Ref | None:
        if isinstance(argument, fx.Node):
            self.rebinding.read_deferred(argument)
            self.rebinding.note_use(self.custom)
            return Ref(self.aliases.resolve(self.single(argument)))
        return None

    def cast_use(self, casts: dict[fx.Node, torch.dtype]) -> Callable[[Any], Ref | None]:
        """`use`, with what autocast makes of operands."""

        def used(argument: Any) -> Ref | None:
            ref = self.use(argument)
            if ref is None or argument not in casts:
                return ref
            return Ref(self.aliases.cast(ref.value, dtype_name(casts[argument]), self.scope))

        return used if casts else self.use

    # operators

    def operator(self, node: fx.Node, target: OpOverload) -> None:
        name = str(target)
        if name in ASSERTS or not schema(target).returns:  # it checks something, and gives nothing
            return
        self.refuse_random(node, target)
        use = self.cast_use(self.regions.casts(node))
        args = tuple(encode(a, use) for a in node.args)
        kwargs = {k: encode(a, use) for k, a in node.kwargs.items() if k not in PLACEMENT}
        if name == USER_BACKWARD:  # a hook may have changed a tangent in place
            tangents = tuple(Ref(self.single(n)) for n in node.args[2])  # type: ignore[union-attr]
            args = (*args[:2], tangents, *args[3:])
        if schema(target).is_mutable:
            self.write(node, target, args, kwargs)
            return
        if name == STRIDED:
            name, args = windows(node, args)
        elif name.startswith("aten.to."):
            name, args, kwargs = cast(node, args)
        elif name == "aten.batch_norm.default" and args[5] is True:
            self.values[node] = self.batch_norm(node, args)
            return
        elif name == "aten.instance_norm.default" and args[5] is True and args[3] is not None:
            raise TraceError("instance norm with running statistics is not supported")
        present: dict[str, Argument] = {k: a for k, a in kwargs.items() if a is not None}
        self.values[node] = self.emit(node, name, args, present)

    def refuse_random(self, node: fx.Node, target: OpOverload) -> None:
        name = str(target)
        seeded = torch.Tag.nondeterministic_seeded in target.tags
        if name in (*SEEDED, *RECURRENT) or name.startswith("aten.dropout_.") or name in DRAWS:
            return
        if seeded or base_name(target) in COMPOSITE_RANDOM:
            raise TraceError(
                f"random operator {name} is not supported: it does not draw a fixed number of "
                "uniform numbers, so that no plan could reproduce it. Draw outside the model and "
                "pass the numbers in the batch, or use rand, randn, bernoulli or exponential"
            )

    def emit(
        self, node: fx.Node, name: str, args: tuple[Argument, ...], kwargs: dict[str, Argument]
    ) -> int | tuple[int, ...]:
        if "val" not in node.meta:
            raise TraceError(f"operator {name} gives something that is no tensor")
        output = node.meta["val"]
        several = isinstance(output, list | tuple)
        tensors = list(output) if several else [output]
        if not all(t is None or isinstance(t, torch.Tensor) for t in tensors):
            raise TraceError(f"operator {name} gives something that is no tensor")
        types = tuple(None if t is None else tensor_type(t) for t in tensors)
        results = self.aliases.emit(name, args, types, kwargs, self.scope)
        op = self.graph.ops[-1]
        results = self.apply_gradient_mode(results, name)
        for position, (value, tensor) in enumerate(zip(results, tensors, strict=True)):
            for argument in node.all_input_nodes:
                if tensor is not None and is_view(node, argument, tensor):
                    self.aliases.view(value, self.single(argument), op, position)
        if name == USER_BACKWARD and node.args[4] is True:
            self.rebinding.rebind(node, results)
        return results if several else results[0]

    def apply_gradient_mode(self, results: tuple[int, ...], name: str) -> tuple[int, ...]:
        """Detach results computed under no_grad."""
        if self.gradients or name in (DETACH, USER_BACKWARD):
            return results
        return tuple(self.aliases.detached(r, self.scope) for r in results)

    # writes

    def write(
        self,
        node: fx.Node,
        target: OpOverload,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
    ) -> None:
        """Replace `x.op_(y)` by the functional operator, whose result becomes the value of x."""
        if isinstance(node.kwargs.get("out"), fx.Node):
            self.write_out(node, target, args, kwargs)
            return
        written = node.args[0]
        arguments = schema(target).arguments
        writes = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
        if not isinstance(written, fx.Node) or writes != [True] + [False] * (len(arguments) - 1):
            raise TraceError(
                f"in-place operator {target} is not supported; use the out-of-place form"
            )
        if torch.Tag.inplace_view in target.tags:
            self.values[node] = self.values[written] = self.inplace_view(node, target, args, kwargs)
            return
        self.values[node] = self.values[written]
        if base_name(target) == "detach_":
            return
        tensor = self.single(written)
        value = self.functional(node, target, args, kwargs, self.graph.types[tensor])
        value = self.aliases.cast(value, self.graph.types[tensor].dtype, self.scope)
        self.aliases.assign(tensor, value, self.scope)

    def write_out(
        self,
        node: fx.Node,
        target: OpOverload,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
    ) -> None:
        """Replace `op(…, out=x)` by the operator without it, whose result becomes the value of x."""
        out = self.single(node.kwargs["out"])
        overloads = (overload_name(target).removesuffix("out").rstrip("_"), "Tensor", "default")
        names = (f"{target.namespace}.{base_name(target)}.{o}" for o in overloads if o)
        name = next((n for n in names if overload(n) is not None), None)
        if name is None:
            raise TraceError(f"operator {target} is not supported; use it without out=")
        rest = {k: a for k, a in kwargs.items() if k != "out"}
        (value,) = self.aliases.emit(name, args, (self.graph.types[out],), rest, self.scope)
        self.aliases.assign(out, self.apply_gradient_mode((value,), name)[0], self.scope)
        self.values[node] = out

    def inplace_view(
        self,
        node: fx.Node,
        target: OpOverload,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
    ) -> int:
        """Replace `x.transpose_()` and the like: x becomes a view of its former value."""
        base = base_name(target).removesuffix("_")
        name = f"{target.namespace}.{base}.{overload_name(target)}"
        name = RENAMED.get(name, name)
        if overload(name) is None:
            raise TraceError(f"in-place operator {target} is not supported")
        type_ = tensor_type(node.meta["val"])
        (result,) = self.aliases.emit(name, args, (type_,), kwargs, self.scope)
        self.aliases.view(result, self.single(node.args[0]), self.graph.ops[-1], 0)
        return result

    def functional(
        self,
        node: fx.Node,
        target: OpOverload,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
        type_: TensorType,
    ) -> int:
        """The value written: of the target's shape, perhaps of another element type."""
        base = base_name(target).removesuffix("_")
        if base in ("copy", "fill", "zero"):
            return self.filled(args, type_)
        name = functional_name(target)
        if str(target) in DRAWS:
            name = str(target)
        elif overload(name) is None:
            raise TraceError(
                f"in-place operator {target} is not supported; use the out-of-place form"
            )
        written = TensorType(type_.shape, promoted(node, base, type_.dtype))
        results = self.aliases.emit(name, args, (written,), kwargs, self.scope)
        return self.apply_gradient_mode(results, name)[0]

    def filled(self, args: tuple[Argument, ...], type_: TensorType) -> int:
        """The value that `copy_`, `fill_` or `zero_` writes into a tensor of type `type_`."""
        aliases, scope = self.aliases, self.scope
        target, *values = args
        source = values[0] if values else 0
        if not isinstance(source, Ref):
            return aliases.emit("aten.full_like.default", (target, source), (type_,), None, scope)[
                0
            ]
        value = aliases.cast(source.value, type_.dtype, scope)
        if self.graph.types[value].shape != type_.shape:
            args = (Ref(value), tuple(type_.shape))
            (value,) = aliases.emit("aten.expand.default", args, (type_,), None, scope)
        if not self.gradients:
            value = aliases.detached(value, scope)
        if value == source.value:  # apart from what is written into the source later
            (value,) = aliases.emit("aten.clone.default", (Ref(value),), (type_,), None, scope)
        return value

    def batch_norm(self, node: fx.Node, args: tuple[Argument, ...]) -> int:
        statistics = [self.single(n) for n in node.args[3:5] if isinstance(n, fx.Node)]
        running = (statistics[0], statistics[1]) if len(statistics) == 2 else None
        return batch_norm(self.aliases, self.single(node.args[0]), args, running, self.scope)
