"""Functions whose operators have no place in a program, in terms of others that have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import TraceError
from ..locate import current_user_line
from ..operators.checked import OPS
from ..torch_private import tree_map
from .gradients import gradients
from .losses import gaussian_nll_loss
from .spectra import istft, stft

BEYOND = "the program was made for numbers below {count} here, the minlength of this bincount"


def _data(x: Tensor) -> Tensor:
    """`x.data`: the same memory without a gradient."""
    return x.detach()


class Frozen:
    """Parameters that a forward freezes on its way and trains again: critics, say, while the loss of a
    policy goes through them. In between their values carry no gradient."""

    def __init__(self) -> None:
        self.lines: dict[int, str] = {}

    def change(self, parameter: Tensor, trained: bool) -> Tensor:
        """`parameter.requires_grad_(trained)`. Raises TraceError where it was frozen from the start."""
        if not parameter.requires_grad and trained:
            raise _refused_change(current_user_line())
        if parameter.requires_grad and not trained:
            self.lines.setdefault(id(parameter), current_user_line())
        else:
            self.lines.pop(id(parameter), None)
        return parameter

    def detached(self, arguments: Any) -> Any:
        """Arguments of a call, without gradients of what is frozen."""
        if not self.lines:
            return arguments
        return tree_map(lambda v: v.detach() if id(v) in self.lines else v, arguments)

    def refuse_left(self) -> None:
        """Refuse a forward after which a parameter stays frozen: the next step would be another one."""
        for line in self.lines.values():
            raise _refused_change(line)


def _refused_change(line: str) -> TraceError:
    return TraceError(
        f"{line}: the forward changes whether a parameter is trained. Freeze it "
        "before tracing, or detach its values where no gradient shall pass"
    )


def _set_data(x: Tensor, value: Tensor) -> Tensor:
    return x.detach().copy_(value)


def _fill_diagonal(x: Tensor, value: float, wrap: bool = False) -> Tensor | None:
    if wrap or x.dim() != 2:
        return None
    rows, columns = torch.arange(x.shape[0]), torch.arange(x.shape[1])
    return x.copy_(torch.where(rows[:, None] == columns, value, x))


def _bincount(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor | None:
    """Of numbers below `minlength`, which the program checks."""
    if minlength < 1 or x.dim() != 1:
        return None
    message = f"{current_user_line()}: {BEYOND.format(count=minlength)}"
    index = OPS.checked(x, x < minlength, message).to(torch.int64)
    counted = torch.ones_like(index) if weights is None else weights
    return torch.zeros(minlength, dtype=counted.dtype).index_add(0, index, counted)


def _covariance(
    x: Tensor, *, correction: int = 1, fweights: Any = None, aweights: Any = None
) -> Tensor | None:
    """Of variables in rows, without weights: torch's own asks whether the divisor is positive."""
    if fweights is not None or aweights is not None or not 1 <= x.dim() <= 2:
        return None
    x = x.reshape(-1, x.shape[-1])
    centred = x - x.mean(1, keepdim=True)
    return (centred @ centred.mH / max(x.shape[1] - correction, 0)).squeeze()


def _correlation(x: Tensor) -> Tensor | None:
    """The covariance over both standard deviations, within -1 and 1."""
    covariance = None if x.is_complex() else _covariance(x)
    if covariance is None or covariance.dim() == 0:
        return None if covariance is None else covariance / covariance
    deviations = covariance.diagonal().sqrt()
    return (covariance / deviations[:, None] / deviations[None]).clip(-1, 1)


def _index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Rows by index, joined by a product, mean or extreme: as of indices by element."""
    shape = [1] * source.dim()
    shape[dim] = -1
    places = index.long().reshape(shape).expand_as(source)
    return x.scatter_reduce(dim, places, source, reduce, include_self=include_self)


def _index_reduce_(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x.copy_(_index_reduce(x, *args, **kwargs))


REWRITTEN: dict[str, Callable[..., Any]] = {
    "fill_diagonal_": _fill_diagonal,
    "bincount": _bincount,
    "index_reduce": _index_reduce,
    "index_reduce_": _index_reduce_,
    "cov": _covariance,
    "corrcoef": _correlation,
    "stft": stft,
    "istft": istft,
    "gaussian_nll_loss": gaussian_nll_loss,
}


def rewritten(func: Any, args: Any, kwargs: Any) -> Any:
    """What a function gives by others; None where it stays as it is."""
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__") and getattr(func, "__self__", None) is torch.Tensor.data:
        return _data(*args[:1]) if name == "__get__" else _set_data(*args)
    if func is torch.autograd.grad:
        return gradients(*args, **kwargs)
    rule = REWRITTEN.get(name)
    return None if rule is None else rule(*args, **kwargs)
