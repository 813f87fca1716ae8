"""Record hooks on gradients: of tensors, of parameters, of modules.

A hook becomes a `user_backward` whose results are its inputs: what the hook returns takes the place
of the gradient. A hook that returns nothing and changes nothing would only watch, which a compiled
program cannot let it do; it is refused, as is what cannot be expressed.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.fx.traceback
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils.hooks import RemovableHandle

from ...errors import TraceError
from ..locate import current_user_line, definition
from ..operators.user_backward import tangent, user_backward
from ..torch_private import (
    autograd_node,
    backward_hooks_of_old,
    below_functions,
    post_accumulate_hooks,
    tensor_hooks,
    write_count,
)
from .functions import fitted, one_scope
from .module_hooks import WATCHES, ModuleHook, called

Hook = Callable[..., Any]


@contextlib.contextmanager
def recorded_hooks(model: nn.Module) -> Iterator[list[str]]:
    """Hooks that the forward registers, and backward hooks of modules, are recorded or refused.

    Gives where the hooks of modules were defined, by the number of the pair that they became.
    """
    refuse_old_hooks(model)
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context
        patch(mock.patch.object(Tensor, "register_hook", _register_hook))
        for name in ("register_post_accumulate_grad_hook",):
            patch(mock.patch.object(Tensor, name, _refused(f"Tensor.{name}")))
        for name in ("register_multi_grad_hook",):
            patch(mock.patch.object(torch.autograd.graph, name, _refused(name)))
        patch(
            mock.patch.object(
                Tensor, "grad_fn", property(lambda tensor: _Node.of(tensor)), create=True
            )
        )
        pairs: list[str] = []
        patch(mock.patch.object(module_hooks, "BackwardHook", partial(ModuleHook, pairs)))
        yield pairs


def refuse_old_hooks(model: nn.Module) -> None:
    """`register_backward_hook` sees gradients of the last operator only; torch itself warns of it."""
    for hook in backward_hooks_of_old(None):
        raise TraceError(f"{definition(hook)}: {_OLD}")
    for path, module in model.named_modules():
        for hook in backward_hooks_of_old(module):
            raise TraceError(f"{definition(hook)}: on module {path or 'itself'}: {_OLD}")


_OLD = "register_backward_hook is not supported; use register_full_backward_hook"


def _refused(name: str) -> Hook:
    def refuse(*_: Any, **__: Any) -> Any:
        raise TraceError(
            f"{current_user_line()}: {name} in the forward is not supported; use "
            "Tensor.register_hook, whose hook returns the new gradient"
        )

    return refuse


class _Node:
    """An autograd node as a forward may see it: everything but hooks."""

    def __init__(self, node: Any) -> None:
        self._node = node

    @classmethod
    def of(cls, tensor: Tensor) -> Any:
        node = autograd_node(tensor)
        return None if node is None else cls(node)

    def __getattr__(self, name: str) -> Any:
        if name in ("register_hook", "register_prehook"):
            return _refused(f"grad_fn.{name}")
        return getattr(self._node, name)


def refuse_own_gradients(parameters: Sequence[tuple[str, Tensor, bool]]) -> None:
    """Raises TraceError for a parameter whose gradient the model's code wrote or switched itself."""
    with below_functions():
        states = [(name, t.requires_grad != wanted, t.grad) for name, t, wanted in parameters]
    for name, is_switched, gradient in states:
        if is_switched:
            raise TraceError(
                f"the forward changes requires_grad of {name}; change it before tracing"
            )
        if gradient is not None:
            raise TraceError(
                f"the model writes the gradient of {name} itself while it runs; a backward must return "
                "gradients: give the parameter to the function as an argument"
            )


def _register_hook(tensor: Tensor, hook: Hook) -> RemovableHandle:
    """Stands for `Tensor.register_hook` while a forward is recorded."""
    if not tensor.requires_grad:
        raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
    rebound([tensor], lambda tangents: [called(hook, tangents[0])])
    return _Registered(OrderedDict())


class _Registered(RemovableHandle):
    """The handle of a hook that has been recorded."""

    def remove(self) -> None:
        raise TraceError(
            f"{current_user_line()}: a hook is removed in the forward that registered it; leave both out"
        )


def rebound(tensors: Sequence[Tensor], change: Callable[[list[Tensor]], list[Any]]) -> None:
    """From here on, gradients of these tensors go through `change` first."""
    group = torch.fx.traceback.annotate({"rebind": True})
    with one_scope(), group, torch.no_grad():
        tangents = [tangent(t) for t in tensors]
        gradients = [fitted(g, t) for g, t in zip(change(tangents), tensors, strict=True)]
        user_backward(list(tensors), list(tensors), tangents, gradients, True, -1, [])


def hooked_parameters(parameters: Sequence[tuple[str, Tensor, Tensor]]) -> None:
    """Record the hooks of parameters: (name, the user's parameter, the tensor in its place)."""
    with below_functions():
        hooked = [
            (name, fake, hooks, after)
            for name, parameter, fake in parameters
            for hooks, after in [(tensor_hooks(parameter), post_accumulate_hooks(parameter))]
            if (hooks or after) and parameter.requires_grad
        ]
    for name, fake, hooks, after in hooked:

        def change(
            tangents: list[Tensor], hooks: Any = hooks, after: Any = after, fake: Tensor = fake
        ) -> list[Any]:
            (gradient,) = tangents
            for hook in hooks:
                gradient = called(hook, gradient)
            for hook in after:
                gradient = _accumulated(hook, fake, gradient)
            return [gradient]

        with torch.fx.traceback.annotate({"hooked_parameter": name}):
            rebound([fake], change)


def _accumulated(hook: Hook, parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient after a post-accumulate hook, which is given the parameter with its gradient."""
    holder = parameter.detach().requires_grad_()
    holder.grad = gradient
    before = write_count(gradient)
    try:
        hook(holder)
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(
            f"{definition(hook)}: this post-accumulate hook fails while it is traced "
            f"({type(error).__name__}: {error}); an optimizer's step inside backward is not "
            "supported: give the optimizer to parallelize"
        ) from error
    changed = holder.grad
    if changed is None:
        raise TraceError(
            f"{definition(hook)}: this hook drops the gradient; an optimizer's step inside backward "
            "is not supported: give the optimizer to parallelize"
        )
    if changed is gradient and write_count(gradient) == before:
        raise TraceError(f"{definition(hook)}: this hook {WATCHES}")
    return changed
