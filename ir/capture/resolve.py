"""Resolve operator names of a file to registered torch operators, and to nothing else."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ..errors import FileError
from .operators import attention as _attention  # noqa: F401  (registers plait::attention)
from .operators import batch_norm as _batch_norm  # noqa: F401  (registers plait::batch_norm)
from .operators import checked as _checked  # noqa: F401  (registers plait::checked)
from .operators import ctc as _ctc  # noqa: F401  (registers plait::ctc)
from .operators import experts as _experts  # noqa: F401  (registers plait::experts)
from .operators import random_numbers as _random  # noqa: F401  (registers plait::uniform)
from .operators import recurrence as _recurrence  # noqa: F401  (registers plait::recurrence)
from .torch_private import OpOverload, is_registered

NAME = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*\.[A-Za-z_]\w*", re.ASCII)
# Namespaces whose operators a library registers on import.
PROVIDERS = {"transformers": "transformers.integrations.moe", "torchvision": "torchvision"}


def overload(target: str) -> OpOverload | None:
    """Return the registered operator `target`, or None."""
    try:
        return _registered(target)
    except LookupError:
        return None


@cache
def _registered(target: str) -> OpOverload:
    """Raise LookupError for unknown names; not cached, as a library may register them later."""
    if not NAME.fullmatch(target):
        raise LookupError(target)
    space, name, variant = target.split(".")
    if not is_registered(space, name):
        try:
            importlib.import_module(PROVIDERS[space])
        except ImportError as error:
            raise LookupError(target) from error
    if not is_registered(space, name):
        raise LookupError(target)
    packet = getattr(getattr(torch.ops, space), name)
    if variant not in packet.overloads():
        raise LookupError(target)
    return getattr(packet, variant)


def resolve(target: str) -> Callable[..., Any]:
    """Return the operator to call for an `Op.target`. Raises FileError for unknown names."""
    operator = overload(target)
    if operator is None:
        raise FileError(
            f"operator {target!r} is not a registered torch operator; "
            "expected <namespace>.<name>.<overload>, as in aten.mm.default"
        )
    return operator
