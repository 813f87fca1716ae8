"""Record `torch.autograd.Function`s with the backward that their author wrote.

While a model is recorded, `apply` runs the forward without gradients, then the backward on tangents,
and joins both by `user_backward`. References to `apply` that were taken before recording go through
the same base class, so they are recorded as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.fx.traceback
import torch.utils.checkpoint
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ...errors import TraceError
from ..locate import current_user_line, definition
from ..operators.user_backward import tangent, user_backward
from ..torch_private import FUNCTION_BASE, call_autograd_function, sets_up_context


class _Context(FunctionCtx):
    """What `forward`, `setup_context` and `backward` take as `ctx`."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.to_save: tuple[Any, ...] = ()
        self.dirty_tensors: tuple[Any, ...] = ()
        self.non_differentiable: tuple[Any, ...] = ()
        self.materialize_grads = True

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        return self.to_save


@contextlib.contextmanager
def recorded_functions() -> Iterator[None]:
    """Every `Function.apply` records its own backward."""
    FUNCTION_BASE.apply = classmethod(_apply)
    try:
        yield
    finally:
        del FUNCTION_BASE.apply


@contextlib.contextmanager
def one_scope() -> Iterator[None]:
    """Operators recorded inside all belong to the module that is running now."""
    with torch.fx.traceback.annotate({"one_scope": current_scope()}):
        yield


def current_scope() -> int:
    """The number of the module invocation that is running now."""
    custom = torch.fx.traceback.current_meta.get("custom") or {}
    return int(custom.get("one_scope", custom.get("invocation", 0)))


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    if cls.__module__.startswith("torch._"):  # gradients of registered operators
        return call_autograd_function(cls, *args, **kwargs)
    if cls is torch.utils.checkpoint.CheckpointFunction:
        return _checkpointed(*args)
    needs = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
    wanted = any(needs) and torch.is_grad_enabled()
    ctx = _Context(needs if wanted else (False,) * len(args))
    with one_scope():
        with torch.no_grad():
            output = _forward(cls, ctx, args, kwargs)
        if not wanted:
            return output
        several = isinstance(output, list | tuple)
        outputs = _Outputs(cls, ctx, list(output) if several else [output])
        with torch.no_grad():
            gradients = _backward(cls, ctx, outputs.gradients(), args)
        inputs = [a for a, need in zip(args, needs, strict=True) if need]
        fitted = [g for g, need in zip(gradients, needs, strict=True) if need]
        joined = outputs.joined(inputs, fitted)
    return tuple(joined) if several else joined[0]


def _checkpointed(run: Any, preserve: bool, *args: Any) -> Any:
    """A reentrant checkpoint: what it runs, with gradients if an argument wants one."""
    wanted = any(isinstance(a, Tensor) and a.requires_grad for a in args)
    with contextlib.nullcontext() if wanted else torch.no_grad():
        return run(*args)


def _forward(cls: Any, ctx: _Context, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not sets_up_context(cls):
        output = cls.forward(ctx, *args, **kwargs)
    else:
        output = cls.forward(*args, **kwargs)
        cls.setup_context(ctx, args, output)
    if ctx.dirty_tensors:
        raise TraceError(
            f"{current_user_line()}: {cls.__name__} changes its input in place (mark_dirty), which "
            "is not supported; have its forward return a new tensor"
        )
    return output


def _backward(
    cls: Any, ctx: _Context, tangents: Sequence[Any], args: tuple[Any, ...]
) -> list[Tensor | None]:
    """The gradients of all arguments, each of its argument's type."""
    run = cls.backward if cls.backward is not torch.autograd.Function.backward else cls.vjp
    try:
        returned = run(ctx, *tangents)
    except (RuntimeError, TypeError, AttributeError) as error:
        if any(g is None for g in tangents):
            raise TraceError(
                f"{definition(run)}: the backward of {cls.__name__} fails on an output without "
                "gradient; leave set_materialize_grads out, or split the function"
            ) from error
        raise
    gradients = list(returned) if isinstance(returned, list | tuple) else [returned]
    extra = gradients[len(args) :]
    if len(gradients) < len(args) or any(g is not None for g in extra):
        raise TraceError(
            f"{definition(run)}: the backward of {cls.__name__} gives {len(gradients)} gradients "
            f"for {len(args)} arguments"
        )
    return [fitted(g, a) for g, a in zip(gradients[: len(args)], args, strict=True)]


def fitted(gradient: Any, argument: Any) -> Tensor | None:
    """A gradient as autograd would pass it on: summed to its argument's shape, of its type."""
    if not isinstance(gradient, Tensor) or not isinstance(argument, Tensor):
        return None
    if gradient.shape != argument.shape:
        gradient = gradient.sum_to_size(argument.shape)
    return gradient if gradient.dtype == argument.dtype else gradient.to(argument.dtype)


class _Outputs:
    """The forward's outputs, and the tangents of those that carry a gradient."""

    def __init__(self, cls: Any, ctx: _Context, outputs: list[Any]) -> None:
        fixed = {id(t) for t in ctx.non_differentiable}
        self.outputs, self.ctx = outputs, ctx
        self.places = [
            i
            for i, o in enumerate(outputs)
            if isinstance(o, Tensor) and o.is_floating_point() and id(o) not in fixed
        ]
        if len(self.places) > 1 and not ctx.materialize_grads:
            raise TraceError(
                f"{current_user_line()}: {cls.__name__} has several outputs and "
                "set_materialize_grads(False): which of them get a gradient is not known while it is "
                "traced; leave it out"
            )
        with torch.no_grad():
            self.tangents = [tangent(outputs[i]) for i in self.places]

    def gradients(self) -> list[Any]:
        """What `backward` is given for every output."""
        known = dict(zip(self.places, self.tangents, strict=True))
        return [known[i] if i in known else self.missing(o) for i, o in enumerate(self.outputs)]

    def missing(self, output: Any) -> Any:
        fill = isinstance(output, Tensor) and self.ctx.materialize_grads
        return torch.zeros_like(output) if fill else None

    def joined(self, inputs: list[Tensor], gradients: list[Tensor | None]) -> list[Any]:
        """The outputs with the user's backward behind them."""
        if not self.places:
            return self.outputs
        results = [self.outputs[i] for i in self.places]
        made = user_backward(results, inputs, self.tangents, gradients, False, -1, [])
        outputs = list(self.outputs)
        for place, result in zip(self.places, made, strict=True):
            outputs[place] = result
        return outputs
