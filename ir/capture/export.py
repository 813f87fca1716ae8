"""Run a model's forward once on fake tensors and record its operators, above autograd.

Parameters, buffers and the batch enter the recorded graph as plain arguments, so no name that the
user chose ever reaches torch.fx (which splices names into source code). Which module runs what is
recorded by global module hooks. The user's module is restored.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import torch
import torch.fx.traceback
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules import module as module_hooks

from ..errors import TraceError
from ..lowering.cast import dtype_of, precision_of
from ..model.model import BatchConstant, ModelInput, Parameter
from ..model.tensor import TensorType
from . import batch as batches
from .backward.functions import recorded_functions
from .backward.tensor_hooks import hooked_parameters, recorded_hooks, refuse_own_gradients
from .literals import DTYPES, tensor_type
from .locate import CodeLine, trace_error
from .outputs import ForwardOutputs, stand_in_loss
from .python_state.rebound import module_tensors, write_rebound
from .repeated.repeats import Repeats
from .replaced import conditional, flexible
from .replaced.adaptive import AdaptiveSoftmax, adaptive_softmax
from .replaced.conversions import conversions
from .replaced.experts import recorded_experts
from .replaced.norms import BatchNorm, batch_norm
from .replaced.sequences import Sequences
from .replaced.sparse import is_sparse, sparse_refused
from .replaced.transforms import Transforms
from .torch_private import (
    FakeTensorMode,
    autocast_of_cpu,
    calls_replaced,
    compiled_as_eager,
    modules_as_they_are,
    tensor_tables,
    torch_compiling,
)
from .values.branches import Branches
from .values.explore import OtherSide
from .values.guards import guarded
from .values.numbers import numbers_of_math

LossFunction = Callable[[Any, Any], torch.Tensor]
StateTensor = TypeVar("StateTensor", Parameter, ModelInput)
ROOT = 0
CASTS = frozenset({"to", "_to_copy", "type_as"})
VIEWS = CASTS | {
    "alias", "detach", "expand", "expand_as", "permute", "reshape", "select", "slice", "squeeze", "t",
    "transpose", "unsqueeze", "view", "flatten", "unflatten", "contiguous", "clone", "narrow", "chunk",
}  # fmt: skip


@dataclass
class Invocation:
    """One run of one module: its path in the user's model (None for a module outside it).

    Operators of a `line` of it have an invocation of their own, whose module's run is `run`.
    """

    path: str
    class_name: str
    parent: int
    line: str = ""
    run: int = -1


@dataclass
class Recording:
    """The forward as a torch.fx graph whose placeholders are `state_tensors`, then `inputs`.

    `pairs` says where the backward hooks of modules are defined, by their number. `others` are the
    other sides of branches on values, `constants_of_step` gives the values of constants.
    """

    graph: torch.fx.GraphModule
    state_tensors: list[Parameter]
    inputs: list[ModelInput]
    invocations: list[Invocation] = field(default_factory=list)
    constants: tuple[BatchConstant, ...] = ()
    pairs: list[str] = field(default_factory=list)
    others: tuple[OtherSide, ...] = ()
    constants_of_step: Callable[[Any], torch.Tensor | None] = lambda _: None
    lines: dict[tuple[int, CodeLine], int] = field(default_factory=dict)

    def scope(self, custom: dict[str, Any]) -> str:
        """The number of the invocation that a node's notes name, for `Op.scope`."""
        run = int(custom.get("one_scope", custom.get("invocation", ROOT)))
        line: CodeLine | None = custom.get("line")
        if line is None or run >= len(self.invocations):
            return str(run)
        if (run, line) not in self.lines:
            self.lines[run, line] = len(self.invocations)
            of = self.invocations[run]
            text = f"{os.path.basename(line.file)}:{line.number}"
            self.invocations.append(Invocation(of.path, of.class_name, of.parent, text, run))
        return str(self.lines[run, line])


class Step(NamedTuple):
    """What is recorded: the loss of a batch, or the outputs, which are noted in `outputs`."""

    batch: Any
    loss_fn: LossFunction | None
    outputs: ForwardOutputs | None = None


def record(
    model: nn.Module, step: Step, branches: Branches, traced: int, precision: str | None = None
) -> Recording:
    """Record the forward pass and the loss at batch size `traced`.

    With a `precision` other than the model's own, as `model.to(dtype)` would run on floats of it; but
    buffers and inputs that the code casts to their own type wherever it reads them (the rates of
    rotary angles, say) stay in that type. `branches` answers code that asks for values.
    """
    state = state_tensors(model)
    inputs = batches.model_inputs(step.batch, batch_size(step.batch), traced)
    if precision is None or precision == precision_of(state):
        return _record(model, step, branches, _Tensors(state, inputs))
    dtype = dtype_of(precision)
    narrow = _Tensors(_in_type(state, dtype), _in_type(inputs, dtype))
    recording = _record(model, step, branches, narrow)
    nodes = list(recording.graph.graph.nodes)
    widened = _Tensors(
        _as_read(narrow[0], state, nodes[: len(state)]),
        _as_read(narrow[1], inputs, nodes[len(state) :]),
    )
    return recording if widened == narrow else _record(model, step, branches, widened)


def _as_read(
    items: list[StateTensor], own: list[StateTensor], nodes: list[torch.fx.Node]
) -> list[StateTensor]:
    """Buffers and inputs that the code casts wherever it reads them in their own type, the others as
    they are."""
    return [
        before if _is_data(before) and _is_read_as(DTYPES[before.type.dtype], node) else item
        for item, before, node in zip(items, own, nodes, strict=False)
    ]


def _is_data(item: StateTensor) -> bool:
    """Whether a tensor is a buffer or an input of floating-point numbers."""
    return item.type.is_float and not (isinstance(item, Parameter) and item.kind == "parameter")


def _is_read_as(dtype: torch.dtype, node: torch.fx.Node) -> bool:
    """Whether a value is cast to a type wherever it is read; a view of it does not read it."""
    return bool(node.users) and all(
        _gives(user, CASTS, dtype)
        or (_gives(user, VIEWS, node.meta["val"].dtype) and _is_read_as(dtype, user))
        for user in node.users
    )


def _gives(node: torch.fx.Node, operators: frozenset[str], dtype: torch.dtype) -> bool:
    """Whether a node runs one of some operators and gives a tensor of a type."""
    value = node.meta.get("val")
    name = str(node.target).split(".")[1] if node.op == "call_function" else ""
    return name in operators and isinstance(value, torch.Tensor) and value.dtype == dtype


class _Tensors(NamedTuple):
    """What enters a recording."""

    parameters: list[Parameter]
    inputs: list[ModelInput]


def _record(model: nn.Module, step: Step, branches: Branches, entering: _Tensors) -> Recording:
    batch, loss_fn, outputs = step
    parameters, inputs = entering
    constants = batches.constants(batch)
    branches.answering = False
    invocations = [Invocation("", type(model).__name__, -1)]
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    with fake_mode:
        fake_state = [
            _fake(p.type.shape, p.type.dtype, p.kind == "parameter", p.trainable)
            for p in parameters
        ]
        fakes = {i.path: _fake(i.type.shape, i.type.dtype) for i in inputs}
        # a fresh batch, as the model may write into it
        fake_batch = batches.rebuild(batch, fakes.__getitem__)
    for path, tensor in batches.leaves(batch):
        branches.known.take(fakes[path], tensor)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for item, fake in zip(parameters, fake_state, strict=True):
        if item.kind == "buffer":
            branches.known.take(fake, tensors[item.name], item.name)

    def run(state: list[torch.Tensor], batch_tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        branches.answering = True
        hooked_parameters(
            [(p.name, tensors[p.name], f) for p, f in zip(parameters, state, strict=True)]
        )
        before = module_tensors(model)
        with Repeats(model, branches, (invocations, pairs)).calls():
            output = batches.call(model, fake_batch)
        if outputs is None:
            results = [loss_of(output, fake_batch, loss_fn)]
        else:
            returned = outputs.take(output)
            results = [stand_in_loss(returned), *returned]
        write_rebound(before)
        results[0] = guarded(results[0], branches.known)
        branches.frozen.refuse_left()
        refuse_own_gradients(
            [(p.name, t, p.trainable) for p, t in zip(parameters, state, strict=True)]
        )
        return results

    replacements = dict(zip((p.name for p in parameters), fake_state, strict=True))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_with_tensors(model, parameters, replacements))
        pairs = stack.enter_context(_recording(model, invocations))
        stack.enter_context(fake_mode)
        stack.enter_context(branches)
        stack.enter_context(calls_replaced(replacements_of(branches)))
        stack.enter_context(conversions(model, branches))
        try:
            graph = make_fx(run, pre_dispatch=True)(fake_state, list(fakes.values()))
        except TraceError:
            raise
        except Exception as error:
            raise trace_error(error) from error
    return Recording(graph, parameters, inputs, invocations, constants, pairs)


@contextlib.contextmanager
def _recording(model: nn.Module, invocations: list[Invocation]) -> Iterator[list[str]]:
    """Everything that a forward must meet while it is recorded; gives the module hooks by pair."""
    contexts = (
        torch_compiling(),
        compiled_as_eager(),
        autocast_of_cpu(),
        numbers_of_math(),
        recorded_experts(),
        modules_as_they_are(),
        recorded_functions(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.fx.traceback.preserve_node_meta(),
        _record_invocations(model, invocations),
    )
    with contextlib.ExitStack() as stack:
        pairs = stack.enter_context(recorded_hooks(model))
        for context in contexts:
            stack.enter_context(context)
        yield pairs


def replacements_of(branches: Branches) -> dict[Any, Callable[..., Any]]:
    """What is called while a model is recorded, by function of torch that no mode sees."""
    return {
        **conditional.replacements(),
        **flexible.replacements(),
        **Sequences(branches.selections).replacements(),
        **Transforms().replacements(),
        BatchNorm.forward: batch_norm,
        AdaptiveSoftmax.forward: adaptive_softmax,
    }


def _in_type(items: list[StateTensor], dtype: str) -> list[StateTensor]:
    """Parameters, buffers or inputs with their floats in an element type."""
    types = (TensorType(i.type.shape, dtype) if i.type.is_float else i.type for i in items)
    return [msgspec.structs.replace(i, type=t) for i, t in zip(items, types, strict=True)]


def batch_size(batch: Any) -> int:
    """The batch size of a nested batch, by `batch.batch_size`."""
    return batches.batch_size([tensor for _, tensor in batches.leaves(batch)])


def _fake(
    shape: tuple[int, ...], dtype: str, parameter: bool = False, trainable: bool = False
) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=DTYPES[dtype], device="cpu")
    return nn.Parameter(tensor, requires_grad=trainable) if parameter else tensor


def loss_of(output: Any, batch: Any, loss_fn: LossFunction | None) -> torch.Tensor:
    """The scalar loss: `loss_fn(output, batch)`, else `output.loss`, else the (first) output.

    Raises TraceError where that is no floating-point scalar.
    """
    if loss_fn is not None:
        loss: Any = loss_fn(output, batch)
    else:
        loss = getattr(output, "loss", None)
        if loss is None and isinstance(output, dict):
            loss = output.get("loss")
        if loss is None:
            loss = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        shape = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise TraceError(
            f"the model gives no scalar loss (found {shape}); pass loss_fn(output, batch), "
            "or labels in the batch if the model computes its own loss"
        )
    return loss.reshape(())


def state_tensors(model: nn.Module) -> list[Parameter]:
    """Parameters, then buffers, under their first names, with further names as aliases.

    Raises TraceError for lazy modules that are not initialised.
    """
    parameters: list[Parameter] = []
    kinds: tuple[tuple[Literal["parameter", "buffer"], Iterator[tuple[str, torch.Tensor]]], ...] = (
        ("parameter", model.named_parameters(remove_duplicate=False)),
        ("buffer", model.named_buffers(remove_duplicate=False)),
    )
    for kind, named in kinds:
        names: dict[int, list[str]] = {}
        tensors: dict[int, torch.Tensor] = {}
        for name, tensor in named:
            names.setdefault(id(tensor), []).append(name)
            tensors[id(tensor)] = tensor
        for key, (first, *aliases) in names.items():
            tensor = tensors[key]
            if torch.nn.parameter.is_lazy(tensor):
                raise TraceError(
                    f"{first} is not initialised yet; run the model once before tracing"
                )
            if is_sparse(tensor):
                if kind == "buffer":  # a constant: its product is what is traced
                    continue
                raise sparse_refused(f"parameter {first}")
            trainable = kind == "parameter" and tensor.requires_grad
            type_ = tensor_type(tensor)
            parameters.append(Parameter(first, type_, kind, trainable, tuple(aliases)))
    return parameters


@contextlib.contextmanager
def _with_tensors(
    model: nn.Module, parameters: list[Parameter], tensors: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Replace the module's tensors by name and put them back; all else is the business of `State`."""
    first = {alias: p.name for p in parameters for alias in (p.name, *p.aliases)}
    tables = [table for module in model.modules() for table in tensor_tables(module)]
    before = [dict(table) for table in tables]
    try:
        for prefix, module in model.named_modules(remove_duplicate=False):
            for table in tensor_tables(module):
                for name, tensor in table.items():
                    if tensor is not None and not is_sparse(tensor):
                        table[name] = tensors[first[f"{prefix}.{name}" if prefix else name]]
        yield
    finally:
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)


@contextlib.contextmanager
def _record_invocations(model: nn.Module, invocations: list[Invocation]) -> Iterator[None]:
    """Annotate every recorded operator with the number of the module invocation it runs in."""
    paths = {id(module): path for path, module in model.named_modules()}
    open_: list[tuple[int, Any]] = []

    def enter(module: nn.Module, _: Any) -> None:
        parent = open_[-1][0] if open_ else ROOT
        path = paths.get(id(module), invocations[parent].path)
        invocations.append(Invocation(path, type(module).__name__, parent))
        mark = torch.fx.traceback.annotate({"invocation": len(invocations) - 1})
        mark.__enter__()
        open_.append((len(invocations) - 1, mark))

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        open_.pop()[1].__exit__(None, None, None)

    handles = [
        module_hooks.register_module_forward_pre_hook(enter),
        module_hooks.register_module_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        while open_:
            open_.pop()[1].__exit__(None, None, None)
