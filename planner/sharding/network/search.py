"""The search on a network: make it smaller, then solve it exactly or to within the gap.

What is left after pruning and contraction is eliminated exactly if it is small. Else rounds of dual
ascent close the gap, and where they stall an integer program over the labels that are still open.
"""

from __future__ import annotations

import msgspec
import numpy as np

from .contract import Contracted, contract
from .eliminate import eliminate
from .integer import solve_integer
from .labels import Ints
from .network import Answer, Network
from .prune import prune
from .rounds import Rounds

WHOLE = 1 << 18  # entries of tables up to which a network is eliminated at once
PRODUCT = 1 << 22  # sums formed to contract one choice
WORST = 1 << 16  # sums formed to compare one choice's labels
INTEGER = 200_000  # entries of flows' tables up to which an integer program is tried


class SearchOptions(msgspec.Struct, frozen=True):
    """Parts of the search; the optimum does not depend on any of them."""

    prune: bool = True
    contract: bool = True
    eliminate: bool = True
    ascend: bool = True


class Reduced(msgspec.Struct, frozen=True):
    """A network made smaller without losing the optimum, and the way back to all its choices."""

    contracted: Contracted
    kept: list[Ints]

    @property
    def network(self) -> Network:
        return self.contracted.network

    def labels(self, found: list[int]) -> list[int]:
        """Labels of the whole network from labels of the small one."""
        labels = self.contracted.labels(found)
        return [int(kept[label]) for kept, label in zip(self.kept, labels, strict=True)]


def reduce(network: Network, options: SearchOptions) -> Reduced:
    """Drop dominated labels and contract chains."""
    kept = [np.arange(len(seconds)) for seconds in network.seconds]
    if options.prune:
        network, kept = prune(network, WORST)
    return Reduced(contract(network, PRODUCT if options.contract else -1), kept)


def minimise(network: Network, gap: float, options: SearchOptions, deadline: float) -> Answer:
    """The cheapest labels to within `gap`, or the best known at `deadline`; memory is not limited."""
    small = reduce(network, options)
    answer = _core(small.network, gap, options, deadline)
    if answer.labels is None:
        return answer
    labels = small.labels(answer.labels)
    objective = network.value(labels)
    # contraction moves seconds into labels and drops a constant
    return Answer(labels, objective, min(answer.bound + objective - answer.objective, objective))


def fits_integer(network: Network) -> bool:
    """Whether the integer program of this network is small enough to be tried."""
    return sum(flow.seconds.size for flow in network.flows) <= INTEGER


def _core(network: Network, gap: float, options: SearchOptions, deadline: float) -> Answer:
    labels = eliminate(network, WHOLE) if options.eliminate or not network.seconds else None
    if labels is not None:
        value = network.value(labels)
        return Answer(labels, value, value)
    if not options.ascend:
        return solve_integer(network, gap, deadline)
    rounds = Rounds(network, gap)
    rounds.run(deadline)
    left = rounds.ascent.network
    if not rounds.closed and fits_integer(left):
        found = solve_integer(left, gap / 2, deadline)
        rounds.offer(found.labels)
        rounds.raise_bound(found.bound)
    return Answer(rounds.labels, rounds.objective, rounds.bound)
