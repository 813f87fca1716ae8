"""Operator names from a file become torch operators, and nothing else: registered ones only."""

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
from .operators import experts as _experts  # noqa: F401  (registers plait::experts)

NAME = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*\.[A-Za-z_]\w*", re.ASCII)
# Namespaces whose operators a library registers on import.
PROVIDERS = {"transformers": "transformers.integrations.moe", "torchvision": "torchvision"}


def overload(target: str) -> torch._ops.OpOverload | None:
    """The registered operator of that name, or None."""
    try:
        return _registered(target)
    except LookupError:
        return None


@cache
def _registered(target: str) -> torch._ops.OpOverload:
    """LookupError is not remembered: a library may register the operator later."""
    if not NAME.fullmatch(target):
        raise LookupError(target)
    space, name, variant = target.split(".")
    if not _known(space, name):
        try:
            importlib.import_module(PROVIDERS[space])
        except ImportError as error:
            raise LookupError(target) from error
    if not _known(space, name):
        raise LookupError(target)
    packet = getattr(getattr(torch.ops, space), name)
    if variant not in packet.overloads():
        raise LookupError(target)
    return getattr(packet, variant)


def _known(space: str, name: str) -> bool:
    """Whether torch has the operator, asked without making a namespace of that name."""
    return bool(torch._C._jit_get_schemas_for_operator(f"{space}::{name}"))


def resolve(target: str) -> Callable[..., Any]:
    """The operator to call for an `Op.target`; raises FileError when torch knows none."""
    found = overload(target)
    if found is None:
        raise FileError(
            f"operator {target!r} is not a registered torch operator; "
            "expected <namespace>.<name>.<overload>, as in aten.mm.default"
        )
    return found
