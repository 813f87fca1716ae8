"""The face of Plait: what `import plait` gives. Everything loads when first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..ir.devices.cluster import Cluster as Cluster
    from ..ir.errors import FileError as FileError
    from ..ir.errors import InfeasibleError as InfeasibleError
    from ..ir.errors import MismatchError as MismatchError
    from ..ir.errors import PlaitError as PlaitError
    from ..ir.errors import TraceError as TraceError
    from ..ir.errors import UsageError as UsageError
    from ..ir.errors import VerifyError as VerifyError
    from ..ir.model import Model as Model
    from .explain import explain as explain
    from .placement import place as place
    from .plan_object import Plan as Plan
    from .plan_object import load_plan as load_plan
    from .python import parallelize as parallelize
    from .python import plan as plan
    from .python import trace as trace

# fmt: off
_ROOMS = {
    "Cluster": "ir.devices.cluster", "Model": "ir.model", "Plan": "api.plan_object",
    **dict.fromkeys(("PlaitError", "TraceError", "InfeasibleError", "FileError", "MismatchError",
                     "VerifyError", "UsageError"), "ir.errors"),
    **dict.fromkeys(("trace", "plan", "parallelize"), "api.python"), "load_plan": "api.plan_object",
    "explain": "api.explain", "place": "api.placement",
}
# fmt: on

# fmt: off
__all__ = [
    "Cluster", "FileError", "InfeasibleError", "MismatchError", "Model", "PlaitError", "Plan",
    "TraceError", "UsageError", "VerifyError", "explain", "load_plan", "parallelize", "place", "plan",
    "trace",
]
# fmt: on


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"..{_ROOMS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
