"""Training of the user's own module in one process, run eagerly: the judge of generated programs.

The module is built anew by its factory, so that its hooks are there, converted by `module.double()`,
and trained by its own loss and a torch optimizer. Nothing of the trace is used but the order and the
shapes of random masks (`replay`). The trace is interpreted only where there is no such module, and a
note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...ir.capture import Source
from ...ir.capture.batch import call, leaves, rebuild
from ...ir.capture.execute import execute as interpret
from ...ir.capture.export import loss_of
from ...ir.model.model import Model
from ..torch_private import flex_attention_of_cpu
from .compare import cast_fault
from .replay import MaskReplay
from .training import Gradients, Reference, Training

NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})
CASTS: Mapping[Any, torch.dtype] = {
    Tensor.float: torch.float32,
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
}


class Wide(TorchFunctionMode):
    """Computes in float64 where the code asks for a narrower float (norms in float32, say)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in CASTS:
            return args[0].double()
        kwargs = {name: _widen(value) for name, value in (kwargs or {}).items()}
        return func(*map(_widen, args), **kwargs)


class Shaken(Wide):
    """Also moves what is cast by a rounding step of the narrower float, up or down."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        asked = (*args, *(kwargs or {}).values())
        dtypes = [value for value in asked if isinstance(value, torch.dtype) and value in NARROW]
        dtype = CASTS.get(func, dtypes[0] if dtypes else None)
        result = super().__torch_function__(func, types, args, kwargs)
        if dtype is None or not isinstance(result, Tensor) or result.dtype != torch.float64:
            return result
        return result * (1 + torch.finfo(dtype).eps * _signs(result))


def _widen(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value


class _EagerRun(NamedTuple):
    """A training run of the module, and what its random operators and casts were."""

    reference: Reference
    replay: MaskReplay


def reference(build: Callable[[], Source], model: Model, training: Training) -> Reference:
    """Train the module that `build` gives (float64, built anew for every run) on its one batch.

    Explicit casts to narrower floats are retained in a first step. Where there are any, the run to
    compare with has them lifted to float64, for their rounding would hide what float64 shows, and the
    first step bounds what the lifting may change.
    """
    try:
        first = _eager(build, model, training._replace(steps=1))
    except (RuntimeError, NotImplementedError) as error:
        return _lifted(build, model, training, None, _first_line(error))
    if first.replay.unreplayed:
        return _interpreted(build, model, training, _unreplayed(first.replay))
    if first.replay.narrowest in NARROW:
        return _lifted(build, model, training, first, "")
    return _eager(build, model, training).reference


def with_rounded_gradients(training: Training) -> Training:
    """The same training, with every weight a rounding step off at the start and every gradient off by
    one of the largest gradient: what rounding may do to a run, in whichever order sums are taken."""

    def shake(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = optimizer.param_groups
        moved = [p for g in groups for p in g["params"] if p.grad is not None]
        for parameter in moved:
            parameter.grad = (
                parameter.grad.coalesce() if parameter.grad.is_sparse else parameter.grad
            )
        gradients = [p.grad.values() if p.grad.is_sparse else p.grad for p in moved]
        largest = max((float(g.abs().max()) for g in gradients if g.numel()), default=0.0)
        for gradient in gradients:
            step = largest * torch.finfo(gradient.dtype).eps
            gradient.add_(_signs(gradient), alpha=step)

    def factory(*arguments: Any, **keywords: Any) -> torch.optim.Optimizer:
        optimizer = training.optimizer(*arguments, **keywords)
        optimizer.register_step_pre_hook(shake)
        with torch.no_grad():
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                parameter.mul_(1 + torch.finfo(parameter.dtype).eps * _signs(parameter))
        return optimizer

    return training._replace(optimizer=factory)


def _signs(tensor: Tensor) -> Tensor:
    """Plus and minus one in no pattern, without random operators, which are replayed."""
    places = torch.arange(tensor.numel()).reshape(tensor.shape)
    return (1 - 2 * ((places * 2654435761 >> 7) % 2)).to(tensor.dtype)


def _lifted(
    build: Callable[[], Source],
    model: Model,
    training: Training,
    first: _EagerRun | None,
    failure: str,
) -> Reference:
    """The reference with casts lifted to float64; `first` is a step with casts as they are."""
    try:
        run = _eager(build, model, training, Wide)
    except (RuntimeError, NotImplementedError) as error:
        why = f"the module does not run in float64 ({_first_line(error)})"
        return _interpreted(build, model, training, why)
    if run.replay.unreplayed:
        return _interpreted(build, model, training, _unreplayed(run.replay))
    if first is None:
        note = f"explicit casts are lifted to float64: with them the module fails ({failure})"
        return run.reference._replace(notes=(note,))
    assert first.replay.narrowest is not None
    fault = cast_fault(first.reference, run.reference, first.replay.narrowest)
    if fault:  # as rounding of an angle grows with it
        shaken = _eager(build, model, training._replace(steps=1), Shaken).reference
        fault = cast_fault(first.reference, run.reference, first.replay.narrowest, shaken)
    name = str(first.replay.narrowest).removeprefix("torch.")
    note = f"the module computes in {name} in places, which is lifted to float64"
    faults = run.reference.faults + ((fault,) if fault else ())
    return run.reference._replace(notes=(note,), faults=faults)


def _unreplayed(replay: MaskReplay) -> str:
    return f"the draws of {', '.join(replay.unreplayed)} cannot be replayed"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def _eager(
    build: Callable[[], Source],
    model: Model,
    training: Training,
    mode: Callable[[], Any] | None = None,
) -> _EagerRun:
    """Train the module eagerly, under a function mode where there is one."""
    source = build()
    module = source.model
    replay = MaskReplay(model, module, training.seed)
    optimizer = _optimizer(module, training)
    losses, gradients = list[float](), list[Gradients]()
    for step in range(training.steps):
        _zero_gradients(module)
        with replay.one_step(step):
            if mode is None:
                losses.append(_forward_backward(source))
            else:
                with mode():
                    losses.append(_forward_backward(source))
        gradients.append(_gradients(module))
        if optimizer is not None:
            optimizer.step()
    draws = tuple(dict.fromkeys(replay.unexpected))
    expected = Reference(losses, gradients, state_of(module), unmatched_draws=draws)
    return _EagerRun(expected, replay)


def _forward_backward(source: Source) -> float:
    tensors = dict(leaves(source.batch))
    batch = rebuild(source.batch, lambda path: tensors[path].clone())  # a model may write into it
    with flex_attention_of_cpu():
        loss = loss_of(call(source.model, batch), batch, source.loss_fn)
        if loss.requires_grad:
            loss.backward()
    return float(loss.detach())


def _optimizer(module: nn.Module, training: Training) -> torch.optim.Optimizer | None:
    trainable = [p for p in module.parameters() if p.requires_grad]
    return training.optimizer(trainable, **training.arguments) if trainable else None


def _zero_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = None


def _gradients(module: nn.Module) -> Gradients:
    named = module.named_parameters()
    return {name: p.grad.detach().to_dense().clone() for name, p in named if p.grad is not None}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, dense, by every name of `state_dict`, and buffers that it leaves out."""
    state = {**dict(module.named_buffers()), **module.state_dict()}
    return {name: t.to_dense() for name, t in state.items()}


def _interpreted(
    build: Callable[[], Source], model: Model, training: Training, reason: str
) -> Reference:
    """The reference by interpreting the trace itself; `reason` says why."""
    note = (
        f"the reference interprets the trace, not the module, for {reason}: "
        "what the trace lost is not checked"
    )
    source = build()
    module = source.model
    tensors = dict(leaves(source.batch))
    batch = [tensors[item.path] for item in model.inputs]
    parameters = dict(module.named_parameters())
    buffers = dict(module.named_buffers(remove_duplicate=False))
    optimizer = _optimizer(module, training)
    losses, gradients = list[float](), list[Gradients]()
    for step in range(training.steps):
        states = {name: p.detach() for name, p in parameters.items()} | buffers
        loss, computed, updates = interpret(model, states, batch, seed=training.seed, step=step)
        _zero_gradients(module)
        for name, gradient in computed.items():
            parameters[name].grad = gradient
        for name, value in updates.items():
            buffers[name].detach().copy_(value)
        losses.append(float(loss))
        gradients.append(_gradients(module))
        if optimizer is not None:
            optimizer.step()
    return Reference(losses, gradients, state_of(module), (note,))


def interpreted(build: Callable[[], Source], model: Model, training: Training) -> Reference:
    """The reference of a model file, which has no module to run."""
    return _interpreted(build, model, training, "a model file has no module")


def in_its_precision(build: Callable[[], Source], model: Model, training: Training) -> Reference:
    """A run of the module in the precision that `build` gives: what rounding does to one process."""
    return _eager(build, model, training).reference
