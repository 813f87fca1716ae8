"""The face of Plait: what `import plait` gives. Everything loads when first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..ir.cluster import Cluster as Cluster
    from ..ir.errors import FileError as FileError
    from ..ir.errors import InfeasibleError as InfeasibleError
    from ..ir.errors import MismatchError as MismatchError
    from ..ir.errors import PlaitError as PlaitError
    from ..ir.errors import TraceError as TraceError
    from ..ir.errors import UsageError as UsageError
    from ..ir.errors import VerifyError as VerifyError
    from ..ir.model import Model as Model
    from .explanation import explain as explain
    from .face import parallelize as parallelize
    from .face import plan as plan
    from .face import trace as trace
    from .placement import place as place
    from .planned import Plan as Plan
    from .planned import load_plan as load_plan

_ROOMS = {
    "Cluster": "ir.cluster", "Model": "ir.model", "Plan": "api.planned",
    **dict.fromkeys(("PlaitError", "TraceError", "InfeasibleError", "FileError", "MismatchError",
                     "VerifyError", "UsageError"), "ir.errors"),
    **dict.fromkeys(("trace", "plan", "parallelize"), "api.face"), "load_plan": "api.planned",
    "explain": "api.explanation", "place": "api.placement",
}  # fmt: skip

__all__ = [
    "Cluster", "FileError", "InfeasibleError", "MismatchError", "Model", "PlaitError", "Plan",
    "TraceError", "UsageError", "VerifyError", "explain", "load_plan", "parallelize", "place", "plan",
    "trace",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"..{_ROOMS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
