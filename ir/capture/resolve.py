"""Operator names from a file become torch operators, and nothing else: registered ones only."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ..errors import FileError
from . import attention as _attention  # noqa: F401  (registers plait::attention)
from . import experts as _experts  # noqa: F401  (registers plait::experts)

NAME = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*\.[A-Za-z_]\w*", re.ASCII)
# Namespaces whose operators a library registers on import.
PROVIDERS = {"transformers": "transformers.integrations.moe", "torchvision": "torchvision"}


@cache
def overload(target: str) -> torch._ops.OpOverload | None:
    """The registered operator of that name, or None."""
    if not NAME.fullmatch(target):
        return None
    space, name, variant = target.split(".")
    for attempt in range(2):
        if f"{space}::{name}" in _registered(attempt):
            packet = getattr(getattr(torch.ops, space), name)
            return getattr(packet, variant) if variant in packet.overloads() else None
        if space not in PROVIDERS:
            return None
        try:
            importlib.import_module(PROVIDERS[space])
        except ImportError:
            return None
    return None


@cache
def _registered(_attempt: int) -> frozenset[str]:
    return frozenset(s.split(".")[0] for s in torch._C._dispatch_get_all_op_names())


def resolve(target: str) -> Callable[..., Any]:
    """The operator to call for an `Op.target`; raises FileError when torch knows none."""
    found = overload(target)
    if found is None:
        raise FileError(
            f"operator {target!r} is not a registered torch operator; "
            "expected <namespace>.<name>.<overload>, as in aten.mm.default"
        )
    return found
