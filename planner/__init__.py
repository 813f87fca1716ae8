"""Chooses: from a model and a cluster to a plan."""

from .answer import plan as plan
from .options import PlanOptions as PlanOptions
