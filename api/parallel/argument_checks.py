"""Checks of what Python callers give: each error names what was probably meant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...ir.errors import UsageError
from ...ir.unknown_name import unknown_name


def check_model(model: Any, batch: Any) -> None:
    """Raises UsageError unless `model` is a module."""
    from torch import nn

    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        raise UsageError(
            f"model is the class {model.__name__}: give one of it, {model.__name__}(…)"
        )
    if isinstance(batch, nn.Module):
        raise UsageError(f"model is a {_kind(model)} and batch a module: the model comes first")
    raise UsageError(f"model is a {_kind(model)}: give a torch.nn.Module")


def check_training(model: Any, optimizer_args: Any, plan: Any, cluster: Any) -> None:
    """Raises UsageError for a module that has nothing to train, for arguments of an optimizer without
    names, and for a strategy where the file of a plan is expected."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("no parameter of the model requires a gradient: there is nothing to train")
    if optimizer_args is not None and not isinstance(optimizer_args, Mapping):
        raise UsageError(
            f"optimizer_args={optimizer_args!r:.60} has no names: give a dict, as in {{'lr': 3e-4}}"
        )
    if isinstance(plan, str) and "=" in plan and not Path(plan).exists():
        raise UsageError(f"plan={plan!r:.80} is no file; a strategy is pin={plan!r:.80}")
    check_cluster(cluster)


def check_cluster(cluster: Any) -> None:
    """Raises UsageError for a number of devices, whose kind is not said."""
    if isinstance(cluster, int):
        raise UsageError(
            f"cluster={cluster} says no kind of device: write '{cluster}xh100', or 'local:{cluster}' "
            "for processes on this machine"
        )


def check_settings(inputs: Any, nonfinite: Any, timeout_seconds: Any, check_every: Any) -> None:
    """Raises UsageError for settings of a program that it does not know, or that are no numbers."""
    _check_choice("inputs", inputs, ("global", "local"))
    _check_choice("nonfinite", nonfinite, ("stop", "skip", "keep"))
    _check_number("timeout_seconds", timeout_seconds, 0.001, "seconds")
    _check_number("check_every", check_every, 0, "steps")


def _check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(unknown_name(name, str(value), known))


def _check_number(name: str, value: Any, least: float, unit: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not value >= least:
        raise UsageError(f"{name}={value!r:.60} is no number of {unit} from {least:g} on")


def _kind(value: Any) -> str:
    return type(value).__name__
