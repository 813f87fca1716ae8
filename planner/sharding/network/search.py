"""Search on a network: reduce it, then solve it exactly or to within the gap.

After pruning and contraction a small network is solved by variable elimination. Otherwise rounds of
dual ascent close the gap, and where they stall, an integer program over the remaining strategies.
"""

from __future__ import annotations

import msgspec
import numpy as np

from ...question.deadline import Deadline
from .contract import ContractedNetwork, contract
from .eliminate import eliminate
from .integer import solve_integer
from .network import Network, NetworkSolution
from .node_strategies import Ints
from .prune import prune
from .rounds import Rounds

ELIMINATION_CELLS = 1 << 18  # entries of tables up to which a network is eliminated at once
CONTRACTION_CELLS = 1 << 22  # sums formed to contract one node
PRUNING_CELLS = 1 << 16  # sums formed to compare one node's strategies
INTEGER_CELLS = 200_000  # entries of edges' tables up to which an integer program is tried


class SearchOptions(msgspec.Struct, frozen=True):
    """Switches for parts of the search; the optimum does not depend on any of them."""

    prune: bool = True
    contract: bool = True
    eliminate: bool = True
    ascend: bool = True


class ReducedNetwork(msgspec.Struct, frozen=True):
    """A smaller network with the same optimum, and the mapping back to the original one."""

    contracted: ContractedNetwork
    remaining: list[Ints]

    @property
    def network(self) -> Network:
        return self.contracted.network

    def expand(self, reduced: list[int]) -> list[int]:
        """Assignment of the original network from one of the reduced network."""
        assignment = self.contracted.expand(reduced)
        return [
            int(remaining[strategy])
            for remaining, strategy in zip(self.remaining, assignment, strict=True)
        ]


def reduce(network: Network, options: SearchOptions) -> ReducedNetwork:
    """Drop dominated strategies and contract chains."""
    remaining = [np.arange(len(seconds)) for seconds in network.seconds]
    if options.prune:
        network, remaining = prune(network, PRUNING_CELLS)
    return ReducedNetwork(
        contract(network, CONTRACTION_CELLS if options.contract else -1), remaining
    )


def minimise(
    network: Network, gap: float, options: SearchOptions, deadline: Deadline
) -> NetworkSolution:
    """Cheapest assignment to within `gap`, or the best by `deadline`; ignores memory limits."""
    small = reduce(network, options)
    answer = _solve_reduced(small.network, gap, options, deadline)
    if answer.assignment is None:
        return answer
    assignment = small.expand(answer.assignment)
    objective = network.cost_seconds(assignment)
    # contraction moves seconds into strategies and drops a constant
    return NetworkSolution(
        assignment, objective, min(answer.bound + objective - answer.objective, objective)
    )


def fits_integer(network: Network) -> bool:
    """Whether the integer program of this network is small enough to try."""
    return sum(edge.seconds.size for edge in network.edges) <= INTEGER_CELLS


def _solve_reduced(
    network: Network, gap: float, options: SearchOptions, deadline: Deadline
) -> NetworkSolution:
    assignment = (
        eliminate(network, ELIMINATION_CELLS) if options.eliminate or not network.seconds else None
    )
    if assignment is not None:
        value = network.cost_seconds(assignment)
        return NetworkSolution(assignment, value, value)
    if not options.ascend:
        return solve_integer(network, gap, deadline)
    rounds = Rounds(network, gap)
    rounds.run(deadline)
    remaining_network = rounds.ascent.network
    if not rounds.closed and fits_integer(remaining_network):
        solution = solve_integer(remaining_network, gap / 2, deadline)
        rounds.offer(solution.assignment)
        rounds.raise_bound(solution.bound)
    return NetworkSolution(rounds.assignment, rounds.objective, rounds.bound)
