"""Which loop every operator of a function splits over every mesh axis: an exact search."""

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
