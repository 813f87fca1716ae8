"""Chooses: from a model and a cluster to a plan."""

from .options import PlanOptions as PlanOptions
from .search import plan as plan
