"""Chooses: from a model and a cluster to a plan."""

from .options import PlanOptions as PlanOptions
from .search.plan import plan as plan
