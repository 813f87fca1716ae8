"""Private names of torch (2.13) that `ir/capture` and `codegen` use; `repeated` has a file of its own.

Every entry says why the public API does not suffice and what breaks without it. `runtime` has a
file of its own, so that a compiled program need not import capture.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, TypeGuard

import torch
from torch import nn
from torch._decomp import decomposition_table
from torch._ops import OpOverload, _get_dispatch_mode_pre_dispatch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.autograd.function import _is_setup_context_defined, _SingleLevelFunction
from torch.fx.experimental.proxy_tensor import get_proxy_slot, track_tensor_tree
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = [
    "CAST",
    "DATA_DEPENDENT_ERRORS",
    "EFFICIENT_ATTENTION",
    "EFFICIENT_ATTENTION_BACKWARD",
    "ENTER_AUTOCAST",
    "EXIT_AUTOCAST",
    "FLASH_ATTENTION",
    "FLASH_ATTENTION_BACKWARD",
    "FUNCTION_BASE",
    "SET_GRAD_ENABLED",
    "FakeTensorMode",
    "OpOverload",
    "TorchDispatchMode",
    "apart_from_recording",
    "assert_holds",
    "autocast_of_cpu",
    "autograd_node",
    "backward_hooks_of_old",
    "base_name",
    "below_functions",
    "call_autograd_function",
    "calls_replaced",
    "compiled_as_eager",
    "constant_of",
    "decompositions",
    "differentiating",
    "fake_mode_of",
    "is_fake",
    "is_operator",
    "is_registered",
    "module_converted",
    "modules_as_they_are",
    "outside_modes",
    "overload_name",
    "post_accumulate_hooks",
    "recorded_node",
    "recorded_value",
    "recording_graph",
    "recording_tracer",
    "schema",
    "sets_up_context",
    "storage_id",
    "tensor_hooks",
    "tensor_tables",
    "torch_compiling",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_unflatten",
    "write_count",
]

# FakeTensorMode: tensors with shapes and devices but no memory; it has no public name. Without
# it, tracing allocates every weight.

# Raised by FakeTensorMode where a value or a shape depends on data. Without them, the error names
# neither the operator nor a remedy.
DATA_DEPENDENT_ERRORS = (DataDependentOutputException, DynamicOutputShapeException)

# TorchDispatchMode: sees the operators that torch runs below autocast, of which CAST changes the element
# type; neither has a public name. Without them, what autocast casts has to be known by a list.
CAST = torch.ops.aten._to_copy.default

# Fused attention kernels. scaled_dot_product_attention does not return the logsumexp that the
# backward operator and sharded keys need. Without them, attention materialises its scores.
FLASH_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
FLASH_ATTENTION_BACKWARD = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
)
EFFICIENT_ATTENTION = torch.ops.aten._scaled_dot_product_efficient_attention.default
EFFICIENT_ATTENTION_BACKWARD = (
    torch.ops.aten._scaled_dot_product_efficient_attention_backward.default
)

# Names of functions that pre-dispatch graphs call where the model changes torch's modes. Without
# them, a region under no_grad or autocast is read as if it had none.
SET_GRAD_ENABLED = "_set_grad_enabled"
ENTER_AUTOCAST = "_enter_autocast"
EXIT_AUTOCAST = "_exit_autocast"


def tensor_tables(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The module's own parameters and buffers, as the dicts that it reads them from.

    Assigning an attribute checks types and registers names. Without the dicts, parameters cannot be
    swapped for fake ones and put back.
    """
    return module._parameters, module._buffers


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has no values. Without it, reading constants fails inside torch."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def fake_mode_of(tensor: torch.Tensor) -> FakeTensorMode:
    """The mode that a tensor without values belongs to; operators on it run under no other."""
    assert isinstance(tensor, FakeTensor)
    return tensor.fake_mode


def constant_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The values of a fake tensor that was made of numbers of Python, as long as nothing wrote into it.
    Without it, lengths that a factory states have no values where it was called without them."""
    return tensor.constant if isinstance(tensor, FakeTensor) else tensor


@contextlib.contextmanager
def autocast_of_cpu() -> Iterator[None]:
    """`torch.autocast` for any device acts on fake tensors, which are those of a CPU; no public name
    makes regions of another device do. Without it, a region for GPUs casts nothing.
    """
    original = torch.autocast.__init__

    def made(self: Any, device_type: str, dtype: Any = None, *args: Any, **kwargs: Any) -> None:
        if dtype is None:
            dtype = torch.get_autocast_dtype(device_type)
        original(self, "cpu", dtype, *args, **kwargs)

    torch.autocast.__init__ = made  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__init__ = original  # type: ignore[method-assign]


def is_operator(target: object) -> TypeGuard[OpOverload]:
    """Whether a graph node's target is a registered operator; its class has no public name."""
    return isinstance(target, OpOverload)


def schema(operator: OpOverload) -> Any:
    """The operator's FunctionSchema: which arguments it writes, which results are views.

    Without it, in-place operators cannot be told from functional ones.
    """
    return operator._schema


def base_name(operator: OpOverload) -> str:
    """`add_` of `aten.add_.Tensor`, to find the operator's functional form by name."""
    return operator._opname


def overload_name(operator: OpOverload) -> str:
    """`Tensor` of `aten.add_.Tensor`; used as `base_name` is."""
    return operator._overloadname


def is_registered(namespace: str, name: str) -> bool:
    """Whether torch has operator `namespace::name`.

    The public `torch.ops.<namespace>` creates a namespace as a side effect, for any name in a
    file. Without it, unknown names in files leave namespaces behind.
    """
    return bool(torch._C._jit_get_schemas_for_operator(f"{namespace}::{name}"))


def storage_id(tensor: torch.Tensor) -> int:
    """A number that two tensors have in common if they share memory; fake ones have no data_ptr.

    Without it, writes through views are lost.
    """
    return tensor.untyped_storage()._cdata


@contextlib.contextmanager
def torch_compiling() -> Iterator[None]:
    """Make `torch.compiler.is_compiling()` and `is_exporting()` true.

    Both flags have readers but no public setter. Without them, some models branch on tensor values.
    """
    before = torch.compiler._is_compiling_flag, torch.compiler._is_exporting_flag
    torch.compiler._is_compiling_flag = torch.compiler._is_exporting_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag, torch.compiler._is_exporting_flag = before


def compiled_as_eager() -> contextlib.AbstractContextManager[Any]:
    """Run compiled functions of a model as they were written, if the compiler is loaded. Without it,
    they are compiled for the recording."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def differentiating() -> Iterator[None]:
    """Let autograd record inside the kernel of an operator, which torch runs below autograd.

    Without it, a backward that runs its forward again would have to be written by hand.
    """
    included = torch._C._dispatch_tls_local_include_set()
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for device in ("CPU", "CUDA"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, f"Autograd{device}"))
    excluded = excluded.remove(torch._C.DispatchKey.ADInplaceOrView)
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def assert_holds(truth: torch.Tensor, message: str) -> None:
    """Raise where a boolean is false, without waiting for the device; no public name does not wait."""
    torch.ops.aten._assert_async.msg(truth, message)


@contextlib.contextmanager
def calls_replaced(replacements: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    """Call `replacement(original, *args, **kwargs)` wherever these functions of Python are called.

    Functions are imported under many names, so the code of each is exchanged. Without it, functions of
    torch that no mode sees are recorded down to operators that no program has.
    """

    def call(*args: Any, _replacement: Any, _original: Any, **kwargs: Any) -> Any:
        return _replacement(_original, *args, **kwargs)

    before = {f: (f.__code__, f.__defaults__, f.__kwdefaults__) for f in replacements}
    for function, replacement in replacements.items():
        original = FunctionType(function.__code__, function.__globals__, function.__name__)
        original.__defaults__, original.__kwdefaults__ = before[function][1:]
        function.__code__, function.__defaults__ = call.__code__, None
        function.__kwdefaults__ = {"_replacement": replacement, "_original": original}
    try:
        yield
    finally:
        for function, (code, defaults, keywords) in before.items():
            function.__code__, function.__defaults__ = code, defaults
            function.__kwdefaults__ = keywords


def module_converted(
    module: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor]
) -> nn.Module:
    """The module with all its tensors converted. Without it, complex weights lose their imaginary parts,
    as `to` makes them real."""
    return module._apply(convert)


@contextlib.contextmanager
def modules_as_they_are() -> Iterator[None]:
    """Conversions of modules inside a forward that change nothing are nothing; no public name is
    called by all of `to`, `float`, `half` and `cuda`.

    Without it, a forward that calls `self.router.to(dtype)` cannot be recorded.
    """
    original = nn.Module._apply

    def apply(module: nn.Module, function: Callable[[Any], Any], recurse: bool = True) -> Any:
        tensors = [*module.parameters(recurse), *module.buffers(recurse)]
        if all(function(t).dtype == t.dtype for t in tensors):
            return module
        return original(module, function, recurse)

    nn.Module._apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = original  # type: ignore[method-assign]


@contextlib.contextmanager
def outside_modes() -> Iterator[None]:
    """Compute on real tensors while a model is recorded; no public name leaves the modes.

    Without it, values of constants cannot be computed beside the recording.
    """
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


@contextlib.contextmanager
def apart_from_recording() -> Iterator[None]:
    """Compute, and record something else, as if nothing was recorded; gradients are on.

    Without it, what is differentiated inside a forward is recorded as well.
    """
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.enable_grad():
        yield


@contextlib.contextmanager
def below_functions() -> Iterator[None]:
    """Call torch's functions as they are while a model is recorded: no mode is asked.

    Without it, what computes with all rows of a mask is itself taken for a call on selected rows.
    """
    with torch._C.DisableTorchFunction():
        yield


def recording_tracer() -> Any:
    """What records now. Without it, nothing can be added to what is recorded."""
    mode = _get_dispatch_mode_pre_dispatch(torch._C._TorchDispatchModeKey.PROXY)
    assert mode is not None
    return mode.tracer


def recording_graph() -> Any:
    """The graph that is being recorded. Without it, what leads to a tensor is known at its end."""
    return recording_tracer().graph


def recorded_node(tensor: torch.Tensor) -> Any:
    """The node of a tensor in the graph that is being recorded, or None."""
    slot = get_proxy_slot(tensor, recording_tracer(), None)
    return None if slot is None else slot.proxy.node


def recorded_value(node: Any) -> torch.Tensor:
    """A tensor that is this node to the recording, whose own tensor may be gone."""
    tracer = recording_tracer()
    with apart_from_recording(), fake_mode_of(node.meta["val"]):
        value = torch.empty_like(node.meta["val"])
    return track_tensor_tree(value, torch.fx.Proxy(node, tracer), constant=None, tracer=tracer)


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """Torch's own decompositions of operators into smaller ones; no public name has all of them.

    Without them, an operator that nobody declared runs whole on every rank.
    """
    return {op: f for op, f in decomposition_table.items() if isinstance(op, OpOverload)}


# The class in which `Function.apply` looks up the apply of torch's engine. Without it, references to
# `apply` that were taken before a trace bypass capture, and the user's backward is lost.
FUNCTION_BASE: Any = _SingleLevelFunction


def call_autograd_function(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an autograd function by torch's engine, while `FUNCTION_BASE.apply` is replaced."""
    apply = torch._C._FunctionBase.__dict__["apply"]
    return apply.__get__(None, function)(*args, **kwargs)


def sets_up_context(function: Any) -> bool:
    """Whether an autograd function has a `setup_context` of its own, so that its forward has no ctx."""
    return bool(_is_setup_context_defined(function.setup_context))


def autograd_node(tensor: torch.Tensor) -> Any:
    """`tensor.grad_fn`, while the public property is replaced by one that refuses hooks."""
    return vars(torch._C.TensorBase)["grad_fn"].__get__(tensor)


def write_count(tensor: torch.Tensor) -> int:
    """How often a tensor was written in place. Without it, a hook that changes its argument is lost."""
    return tensor._version


def tensor_hooks(tensor: torch.Tensor) -> list[Any]:
    """Hooks that `Tensor.register_hook` has registered; no public name lists them."""
    return list((tensor._backward_hooks or {}).values())


def post_accumulate_hooks(tensor: torch.Tensor) -> list[Any]:
    """Hooks of `Tensor.register_post_accumulate_grad_hook`; no public name lists them."""
    return list((getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values())


def backward_hooks_of_old(module: nn.Module | None) -> list[Any]:
    """Hooks of the deprecated `register_backward_hook`: of a module, or global ones for None."""
    if module is None:
        full = module_hooks._global_is_full_backward_hook is not False
        return [] if full else list(module_hooks._global_backward_hooks.values())
    return [] if module._is_full_backward_hook else list(module._backward_hooks.values())
