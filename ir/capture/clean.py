"""Read a recorded torch.fx graph into a flat `Graph` of pure operators.

In-place operators become functional: every later use of the written tensor, or of a view of the same
memory, reads the new value. Regions without gradients get `detach`; batch norm's hidden update of its
running statistics becomes explicit.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ..errors import TraceError
from ..model import Argument, Op, Parameter, Ref
from ..tensor import TensorType
from .export import ROOT, Recording
from .graph import KEY_TYPE, Graph, substitute
from .literals import PLACEMENT, dtype_name, encode, tensor_type
from .resolve import overload
from .views import write_back

MAXIMUM_CONSTANT = 65_536
ASSERTS = ("aten._assert_tensor_metadata.default", "aten._assert_async.msg", "aten._assert_async.default")
SEEDED = ("aten.dropout.default", "aten.scaled_dot_product_attention.default")
COMPOSITE_RANDOM = ("feature_dropout", "alpha_dropout", "feature_alpha_dropout", "rrelu", "native_dropout")


class Unsupported(Exception):
    """Node `index` of the recording cannot be expressed; the caller knows how to find its line."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def read(recording: Recording) -> Graph:
    """The recording as a flat graph with its loss; raises Unsupported or TraceError."""
    graph, (graph.loss,) = read_outputs(recording)
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
        self.env: dict[fx.Node, int | tuple[int, ...]] = {}
        self.newest: dict[int, int] = {}
        self.views: dict[int, tuple[int, Op, int]] = {}
        self.made_again: dict[tuple[int, int], int] = {}
        self.carrying: set[int] = set()
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
            last = self.resolve(value)
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
            self.outputs = tuple(self.resolve(self.single(n)) for n in _flat(node.args))
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
                self.carrying.add(value)
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

    def resolve(self, value: int) -> int:
        """The value that a tensor holds now, after writes to it or to memory it views."""
        if value in self.views:
            parent, op, position = self.views[value]
            now = self.resolve(parent)
            if now == parent:
                return value
            if (value, now) not in self.made_again:
                types = tuple(self.graph.types[r] for r in op.results)
                changed = substitute(op, {parent: now})
                made = self.graph.emit(op.target, changed.args, types, changed.kwargs, op.scope)
                self.made_again[value, now] = made[position]
                self.note(changed.operands(), made)
            return self.made_again[value, now]
        while value in self.newest:
            value = self.newest[value]
        return value

    def note(self, operands: tuple[int, ...], results: tuple[int, ...]) -> None:
        if not self.carrying.isdisjoint(operands):
            self.carrying.update(r for r in results if r >= 0 and self.graph.types[r].is_float)

    def use(self, argument: Any) -> Ref | None:
        if isinstance(argument, fx.Node):
            return Ref(self.resolve(self.single(argument)))
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
        if seeded or target._opname in COMPOSITE_RANDOM:
            raise TraceError(
                f"random operator {name} is not supported: only dropout (nn.Dropout and the dropout "
                "of scaled_dot_product_attention) can be reproduced under every plan"
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
        results = self.graph.emit(name, args, types, kwargs, self.scope)
        op = self.graph.ops[-1]
        operands = op.operands()
        results = self.apply_gradient_mode(operands, results, name)
        for position, (value, part) in enumerate(zip(results, parts, strict=True)):
            if part is None:
                continue
            for argument in node.all_input_nodes:
                if self.is_view(node, argument, part):
                    source = self.single(argument)
                    self.views[value] = (source, _seen_from(op, self.resolve(source), source), position)
        return results if several else results[0]

    def is_view(self, node: fx.Node, argument: fx.Node, made: torch.Tensor) -> bool:
        """Whether a result shares the memory of an argument."""
        source = argument.meta.get("val")
        if not isinstance(source, torch.Tensor) or not isinstance(node.target, torch._ops.OpOverload):
            return False
        if not any(r.alias_info is not None for r in node.target._schema.returns):
            return False
        return made.untyped_storage()._cdata == source.untyped_storage()._cdata

    def apply_gradient_mode(
        self, operands: tuple[int, ...], results: tuple[int, ...], name: str
    ) -> tuple[int, ...]:
        """Inside no_grad a result is a constant to the outside."""
        if name == "aten.detach.default":
            return results
        if self.gradients:
            self.note(operands, results)
            return results
        if self.carrying.isdisjoint(operands):
            return results
        return tuple(self.detached(r) for r in results)

    def detached(self, value: int) -> int:
        if value < 0 or not self.graph.types[value].is_float:
            return value
        type_ = self.graph.types[value]
        return self.graph.emit("aten.detach.default", (Ref(value),), (type_,), {}, self.scope)[0]

    # writes

    def write(
        self,
        node: fx.Node,
        target: torch._ops.OpOverload,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
    ) -> None:
        """`x.op_(y)`: the functional operator, then everybody sees its result as x."""
        name = f"{target.namespace}.{target._opname}"
        written = node.args[0]
        arguments = target._schema.arguments
        first_only = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
        if not isinstance(written, fx.Node) or first_only != [True] + [False] * (len(arguments) - 1):
            raise TraceError(f"in-place operator {target} is not supported; use the out-of-place form")
        if name == "aten.detach_":
            self.env[node] = self.env[written]
            return
        type_ = self.graph.types[self.single(written)]
        value = self.functional(node, target, args, kwargs, type_)
        value = self.cast(value, type_)
        self.assign(self.single(written), value)
        self.env[node] = self.env[written]

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
            return self.filled(base, args, type_)
        name = f"{target.namespace}.{base}.{target._overloadname}"
        if overload(name) is None:
            raise TraceError(f"in-place operator {target} is not supported; use the out-of-place form")
        operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        kind = type_.dtype
        if target._opname in ("add_", "sub_", "mul_", "div_", "pow_"):
            for other in operands:
                promoted = torch.promote_types(getattr(torch, kind), other.meta["val"].dtype)
                ranked = other.meta["val"].dim() > 0
                kind = dtype_name(promoted) if ranked else kind
        if name == "aten.dropout.default":
            kwargs = {}
        made = self.graph.emit(name, args, (TensorType(type_.shape, kind),), kwargs, self.scope)
        results = self.apply_gradient_mode(self.graph.ops[-1].operands(), made, name)
        return results[0]

    def filled(self, base: str, args: tuple[Argument, ...], type_: TensorType) -> int:
        graph, scope = self.graph, self.scope
        source = args[1] if len(args) > 1 else 0
        if not isinstance(source, Ref):
            like = graph.emit("aten.full_like.default", (args[0], source), (type_,), {}, scope)
            return like[0]
        value = self.cast(source.value, TensorType(graph.types[source.value].shape, type_.dtype))
        if graph.types[value].shape != type_.shape:
            sizes = tuple(type_.shape)
            (value,) = graph.emit("aten.expand.default", (Ref(value), sizes), (type_,), {}, scope)
            self.note((source.value,), (value,))
        return value

    def cast(self, value: int, type_: TensorType) -> int:
        if self.graph.types[value].dtype == type_.dtype:
            return value
        kwargs: dict[str, Argument] = {"dtype": f"dtype:{type_.dtype}"}
        made = self.graph.emit("aten._to_copy.default", (Ref(value),), (type_,), kwargs, self.scope)
        self.note((value,), made)
        return made[0]

    def assign(self, tensor: int, value: int) -> None:
        """From here on `tensor` holds `value`, and so does the memory that it is a view of."""
        while tensor in self.views:
            parent, op, _ = self.views[tensor]
            now = self.resolve(parent)
            whole = write_back(self.graph, op, now, value, self.scope)
            self.note((now, value), (whole,))
            self.made_again[tensor, whole] = value
            tensor, value = parent, whole
        root = self.resolve(tensor)
        held = self.graph.parameters.get(tensor)
        if held is not None and held.kind == "parameter":
            raise TraceError(f"the forward writes into parameter {held.name}; update a buffer instead")
        if root != value:
            self.newest[root] = value

    def batch_norm(self, node: fx.Node, args: tuple[Argument, ...]) -> int:
        """Training batch norm: normalise by the batch, then update the running statistics."""
        x, weight, bias, _, _, _, momentum, epsilon = args[:8]
        graph, scope = self.graph, self.scope
        (source,) = (node.args[0],)
        type_ = graph.types[self.single(source)]
        wide = "float32" if type_.dtype in ("float16", "bfloat16") else type_.dtype
        statistics = TensorType((type_.shape[1],), wide)
        made = graph.emit(
            "aten.native_batch_norm.default",
            (x, weight, bias, None, None, True, momentum, epsilon),
            (type_, statistics, statistics),
            {},
            scope,
        )
        self.note(graph.ops[-1].operands(), made)
        if isinstance(node.args[3], fx.Node) and isinstance(node.args[4], fx.Node):
            count = type_.elements // type_.shape[1]
            self.running(node.args[3], made[1], float(momentum), statistics)  # type: ignore[arg-type]
            variance = self.variance(made[2], float(epsilon), count, statistics)  # type: ignore[arg-type]
            self.running(node.args[4], variance, float(momentum), statistics)  # type: ignore[arg-type]
        return made[0]

    def variance(self, inverse: int, epsilon: float, count: int, type_: TensorType) -> int:
        """The unbiased variance from 1/sqrt(variance + epsilon)."""
        chain: tuple[tuple[str, Argument], ...] = (
            ("aten.detach.default", None),
            ("aten.pow.Tensor_Scalar", -2),
            ("aten.sub.Scalar", epsilon),
            ("aten.mul.Scalar", count / max(count - 1, 1)),
        )
        for name, factor in chain:
            args = (Ref(inverse),) if factor is None else (Ref(inverse), factor)
            (inverse,) = self.graph.emit(name, args, (type_,), {}, self.scope)
        return inverse

    def running(self, buffer: fx.Node, batch: int, momentum: float, type_: TensorType) -> None:
        """buffer = (1 - momentum) * buffer + momentum * batch"""
        graph, scope = self.graph, self.scope
        held = self.single(buffer)
        kept, now = graph.types[held], self.resolve(held)
        (batch,) = graph.emit("aten.detach.default", (Ref(batch),), (type_,), {}, scope)
        new = self.cast(batch, kept)
        (old,) = graph.emit("aten.mul.Scalar", (Ref(now), 1.0 - momentum), (kept,), {}, scope)
        (new,) = graph.emit("aten.mul.Scalar", (Ref(new), momentum), (kept,), {}, scope)
        (new,) = graph.emit("aten.add.Tensor", (Ref(old), Ref(new)), (kept,), {}, scope)
        self.assign(held, new)


def _seen_from(op: Op, now: int, source: int) -> Op:
    """The view operator as one of the original tensor, so that it can be made again."""
    return substitute(op, {now: source}) if now != source else op


def _cast(
    node: fx.Node, args: tuple[Argument, ...]
) -> tuple[str, tuple[Argument, ...], dict[str, Argument]]:
    """Every overload of `to` is a change of element type; the device is not the model's business."""
    return "aten._to_copy.default", args[:1], {"dtype": f"dtype:{dtype_name(node.meta['val'].dtype)}"}




def _flat(argument: Any) -> list[fx.Node]:
    if isinstance(argument, list | tuple):
        return [node for part in argument for node in _flat(part)]
    return [argument] if isinstance(argument, fx.Node) else []
