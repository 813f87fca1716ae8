"""Checks of plans that may come from a file: their parts exist and hold together."""

from .heterogeneous import verify_heterogeneous_plan
from .plan import verify_plan

__all__ = ["verify_heterogeneous_plan", "verify_plan"]
