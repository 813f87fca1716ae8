"""Checks of plans that may come from a file: their parts exist and hold together."""

from .plan import verify_plan

__all__ = ["verify_plan"]
