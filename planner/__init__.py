"""Chooses: from a model and a cluster to a plan. The search loads when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .heterogeneous.plan import plan as plan
    from .question.options import PlanOptions as PlanOptions

_MODULES = {"PlanOptions": ".question.options", "plan": ".heterogeneous.plan"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
