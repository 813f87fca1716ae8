"""Private names of torch (2.13) that `runtime` uses. No other file of it names one.

Every entry says why the public API does not do and what breaks without it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._appdirs import user_cache_dir
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import _profiler_enabled  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import _get_default_store
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "GROUPED_MM",
    "Boxed",
    "TorchDispatchMode",
    "default_store",
    "flex_attention_of_cpu",
    "forward_pre_hooks",
    "inductor_graph",
    "inductor_kernels",
    "is_fake",
    "is_profiling",
    "mark_stepped",
    "returns_alias",
    "set_tensor_tables",
    "step_hooks",
    "storage_id",
    "tensor_tables",
    "tree_leaves",
    "user_cache_dir",
]

# Grouped matrix products: torch has no public operator of them. Without it, a mixture of experts whose
# module calls it cannot run in float64 as the reference of a verification.
GROUPED_MM = torch.ops.aten._grouped_mm.default

# user_cache_dir: the folder for caches on every operating system, without another dependency.
# Without it, compiled kernels are not cached.
# TorchDispatchMode, tree_leaves: see every operator's results; no public hook does.
# Without them, the peak of live bytes cannot be measured on a CPU.


def default_store() -> Any:
    """The store that the default process group was set up with.

    Without it, ranks cannot say where they are while a collective hangs.
    """
    return _get_default_store()


def forward_pre_hooks(module: nn.Module) -> dict[int, Any]:
    """The hooks that run before a module's forward, by the number of their handle.

    Without it, a module that is parallelized again gathers warnings of programs before.
    """
    return module._forward_pre_hooks


Boxed = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]  # empties the list that it takes


class InductorGraph(NamedTuple):
    """A graph of inductor's operators, and operands as it takes them; `text` says what it computes."""

    module: torch.fx.GraphModule
    operands: Sequence[torch.Tensor]
    text: str
    operators: int


def inductor_graph(
    function: Callable[..., tuple[torch.Tensor, ...]], operands: Sequence[torch.Tensor]
) -> InductorGraph:
    """The graph of a function of tensors, for operands of these shapes and strides.

    `torch.compile` takes functions, keeps operands alive to their end, and checks guards in every
    call; a generated function has fixed shapes and frees operands early. Without it, programs cannot
    be compiled.
    """
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode()
    fakes: list[torch.Tensor] = [
        mode.from_tensor(operand, static_shapes=True) for operand in operands
    ]
    with mode:
        module = make_fx(function, decomposition_table=select_decomp_table())(*fakes)
    operators = sum(node.op == "call_function" for node in module.graph.nodes)
    return InductorGraph(module, fakes, module.code, operators)


def inductor_kernels(graph: InductorGraph) -> Boxed:
    """The compiled graph. Raises what inductor raises; without it, programs cannot be compiled."""
    from torch._inductor.compile_fx import compile_fx_inner

    kernels: Boxed = compile_fx_inner(graph.module, graph.operands)  # type: ignore[assignment]
    return kernels


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a shape but no values. Without it, fake weights count as initialised."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def is_profiling() -> bool:
    """Whether a profiler is recording. Without it, every call pays for a name that nobody reads."""
    return _profiler_enabled()


def mark_stepped(optimizer: torch.optim.Optimizer) -> None:
    """Note that a step was made though this rank had nothing to update.

    Without it, schedulers warn on that rank that they were stepped before their optimizer.
    """
    optimizer._opt_called = True  # type: ignore[attr-defined]


def returns_alias(operator: Any) -> bool:
    """Whether a result of the operator shares memory with an argument, by its schema.

    Without it, live storages are looked up for every view.
    """
    return any(result.alias_info is not None for result in operator._schema.returns)


def step_hooks(optimizer: Any) -> list[Any]:
    """The hooks that run before and after an optimizer's step.

    Without it, hooks that clip the module's own gradients do nothing, and nobody is told.
    """
    tables = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return [hook for table in tables for hook in getattr(optimizer, table, {}).values()]


def storage_id(storage: torch.UntypedStorage) -> int:
    """A number of the storage; several Python objects may stand for one storage.

    Without it, live bytes count a storage once per tensor.
    """
    return storage._cdata


def tensor_tables(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The module's own parameters and buffers, as the dicts that it reads them from."""
    return module._parameters, module._buffers


def set_tensor_tables(
    module: nn.Module, parameters: dict[str, Any], buffers: dict[str, Any]
) -> None:
    """Give a copied module separate tables, so that initialising it leaves the original as is.

    `register_parameter` would write into the table that both share.
    """
    module._parameters, module._buffers = parameters, buffers


@contextlib.contextmanager
def flex_attention_of_cpu() -> Iterator[None]:
    """Let flex_attention run on a CPU by torch's own dense operators, with gradients, uncompiled.

    Both are refused or done by names that are private. Without it, a module that calls it cannot be run
    beside its program on a machine without an accelerator.
    """
    module: Any = sys.modules.get("torch.nn.attention.flex_attention")
    if module is None:
        yield
        return
    names = {"_validate_device": lambda *_: None, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG": True}
    before = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        vars(module).update(before)
