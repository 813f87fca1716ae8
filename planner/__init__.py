"""Chooses: from a model and a cluster to a plan. The search loads when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ir.late_names import late_names

if TYPE_CHECKING:
    from .heterogeneous.plan import plan as plan
    from .question.options import PlanOptions as PlanOptions

__getattr__ = late_names(
    __name__, {"PlanOptions": ".question.options", "plan": ".heterogeneous.plan"}
)
