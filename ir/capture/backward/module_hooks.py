"""Backward hooks of modules, recorded in place of torch's own `BackwardHook`.

The inputs of a hooked module pass through one `user_backward`, its outputs through another of the
same pair number. The second holds what the hooks make of the gradients of inputs and outputs, which
backward needs at the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx.traceback
from torch import Tensor, nn

from ...errors import TraceError
from ..locate import definition
from ..operators.user_backward import tangent, user_backward
from ..torch_private import write_count
from .functions import current_scope, fitted

Hook = Callable[..., Any]
WATCHES = (
    "only watches gradients, and a compiled program does not call it; remove it (gradients are in "
    "program.full_gradients() after forward_backward), or return the new gradient"
)


def called(hook: Hook, gradient: Tensor) -> Tensor:
    """The gradient after one hook of a tensor, which may return a new one or change it in place."""
    before = write_count(gradient)
    found = hook(gradient)
    if found is None and write_count(gradient) == before:
        raise TraceError(f"{definition(hook)}: this hook {WATCHES}")
    return gradient if found is None else found


class ModuleHook:
    """The hooks of one call of a module; the interface is that of torch's `BackwardHook`."""

    def __init__(
        self, pairs: list[str], module: nn.Module, hooks: Sequence[Hook], pre_hooks: Sequence[Hook]
    ) -> None:
        self.module, self.hooks, self.pre_hooks = module, hooks, pre_hooks
        self.scope = current_scope()
        self.where = definition((*hooks, *pre_hooks)[0])
        self.pair, self.places = len(pairs), list[int]()
        self.given: list[Any] = []
        self.tangents: list[Tensor] = []
        pairs.append(f"{self.where}: on module {type(module).__name__}")

    def setup_input_hook(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, with gradients that go through the hooks."""
        if not self.hooks or not torch.is_grad_enabled():
            return args
        self.places, self.given = wanting(args), list(args)
        if not self.places:
            return args
        inputs = [args[i] for i in self.places]
        with self.one_scope():
            with torch.no_grad():
                self.tangents = [tangent(t) for t in inputs]
            blank = [None] * len(inputs)
            made = user_backward(inputs, inputs, self.tangents, blank, False, self.pair, [])
        return tuple(replaced(args, self.places, made))

    def setup_output_hook(self, result: Any) -> Any:
        """The module's result, with gradients that go through the pre-hooks."""
        outputs = result if isinstance(result, tuple) else (result,)
        places = wanting(outputs)
        if not places or not torch.is_grad_enabled():
            return result
        several = [outputs[i] for i in places]
        with self.one_scope():
            with torch.no_grad():
                tangents = [tangent(t) for t in several]
                upper = self.before(replaced([None] * len(outputs), places, tangents))
                paired = self.after(upper)
                gradients = [fitted(upper[i], outputs[i]) for i in places]
            pair = self.pair if paired else -1
            made = user_backward(several, several, tangents, gradients, False, pair, paired)
        found = tuple(replaced(outputs, places, made))
        return found if isinstance(result, tuple) else found[0]

    def one_scope(self) -> Any:
        return torch.fx.traceback.annotate({"one_scope": self.scope})

    def before(self, upper: tuple[Any, ...]) -> tuple[Any, ...]:
        """Gradients of the outputs after the pre-hooks."""
        for hook in self.pre_hooks:
            versions = [write_count(g) for g in upper if g is not None]
            found = hook(self.module, upper)
            upper = self.checked(hook, upper, found, versions)
        return upper

    def after(self, upper: tuple[Any, ...]) -> list[Tensor]:
        """Gradients of the inputs after the hooks; none where there are no hooks."""
        if not self.hooks:
            return []
        lower = tuple(replaced([None] * len(self.given), self.places, self.tangents))
        for hook in self.hooks:
            versions = [write_count(g) for g in lower if g is not None]
            found = hook(self.module, lower, upper)
            if not self.places and found is not None and all(g is None for g in found):
                continue  # nothing wants a gradient, and nothing is given
            lower = self.checked(hook, lower, found, versions)
        made = [fitted(lower[i], self.given[i]) for i in self.places]
        return [
            torch.zeros_like(t) if g is None else g
            for g, t in zip(made, self.tangents, strict=True)
        ]

    def checked(
        self, hook: Hook, old: tuple[Any, ...], returned: Any, versions: list[int]
    ) -> tuple[Any, ...]:
        """What a hook returned, or what it changed in place."""
        if returned is None:
            if [write_count(g) for g in old if g is not None] == versions:
                raise TraceError(f"{definition(hook)}: this hook {WATCHES}")
            return old
        returned = returned if isinstance(returned, tuple) else tuple(returned)
        if len(returned) != len(old):
            raise TraceError(
                f"{definition(hook)}: this hook returns {len(returned)} gradients for {len(old)}"
            )
        return returned


def wanting(values: Sequence[Any]) -> list[int]:
    """Positions of tensors that want a gradient."""
    return [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.requires_grad]


def replaced(values: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> tuple[Any, ...]:
    known = dict(zip(places, new, strict=True))
    return tuple(known.get(i, v) for i, v in enumerate(values))
