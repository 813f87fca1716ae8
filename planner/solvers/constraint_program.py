"""Constraint programs, solved by CP-SAT: the typed face of what OR-tools leaves untyped."""

from __future__ import annotations

from typing import Any

from ortools.sat.python import cp_model


def only_if(constraint: cp_model.Constraint, *literals: cp_model.LiteralT) -> None:
    """Enforce a constraint only where all these literals hold."""
    untyped: Any = constraint
    untyped.only_enforce_if(list(literals))
