"""Which loop every operator of a function splits over every mesh axis: an exact search."""

from .judge import price
from .problem import AxisRule, BulkCosts, Costs, ShardingProblem, ShardingSolution
from .search import SearchOptions
from .solve import GAP, solve

__all__ = [
    "GAP", "AxisRule", "BulkCosts", "Costs", "SearchOptions", "ShardingProblem",
    "ShardingSolution", "price", "solve",
]  # fmt: skip
