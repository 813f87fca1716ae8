"""Exact search for the sharding of a function: one OpStrategy per operator and mesh axis."""

from .judge import price
from .network.search import SearchOptions
from .problem import AxisRule, BulkCosts, Costs, ShardingProblem, ShardingSolution
from .solve import GAP, solve

# fmt: off
__all__ = [
    "GAP", "AxisRule", "BulkCosts", "Costs", "SearchOptions", "ShardingProblem",
    "ShardingSolution", "price", "solve",
]
# fmt: on
