"""Linear memory: the cheapest labels whose bytes fit, by pricing bytes and then by integer program."""

from __future__ import annotations

from math import inf

from msgspec.structs import replace

from .integer import solve_integer
from .network import Answer, Network
from .search import SearchOptions, fits_integer, minimise

HALVINGS = 12  # of the price of a byte


def minimise_in_memory(
    network: Network, gap: float, options: SearchOptions, deadline: float
) -> Answer:
    """As `minimise`, and the labels' bytes stay within the network's limit.

    A price on bytes bounds the limited problem from below and leads to solutions that fit; what gap
    remains between the two is closed by the integer program, if the network is small enough for it.
    """
    if sum(float(b.min()) for b in network.bytes) > network.memory_bytes:
        return Answer(None, inf, inf)
    answer = minimise(network, gap, options, deadline)
    if answer.labels is None or network.taken(answer.labels) <= network.memory_bytes:
        return answer
    best = _priced(network, gap, options, deadline, answer)
    if best.bound >= best.objective * (1 - gap) or not fits_integer(network):
        return best
    found = solve_integer(network, gap, deadline)
    bound = max(found.bound, best.bound)
    if best.labels is not None and best.objective <= found.objective:
        return Answer(best.labels, best.objective, min(bound, best.objective))
    return Answer(found.labels, found.objective, min(bound, found.objective))


def _priced(
    network: Network, gap: float, options: SearchOptions, deadline: float, free: Answer
) -> Answer:
    """The best solution that fits and the best bound over prices of a byte, by bisection."""
    assert free.labels is not None
    labels: list[int] | None = None
    objective, bound = inf, free.bound
    low, high = 0.0, inf
    price = free.objective / max(network.taken(free.labels), 1.0)
    for _ in range(HALVINGS):
        seconds = tuple(s + price * b for s, b in zip(network.seconds, network.bytes, strict=True))
        found = minimise(replace(network, seconds=seconds), gap / 2, options, deadline)
        if found.labels is None:
            break
        bound = max(bound, found.bound - price * network.memory_bytes)
        if network.taken(found.labels) <= network.memory_bytes:
            high = price
            if network.value(found.labels) < objective:
                labels, objective = found.labels, network.value(found.labels)
        else:
            low = price
        if bound >= objective * (1 - gap):
            break
        price = 4 * price if high == inf else (low + high) / 2
    return Answer(labels, objective, min(bound, objective))
