"""The space searched: strategy words over a cluster's devices, one for all layers."""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.cluster import Cluster
from ..ir.strategy import FLAG, ROLES, Strategy

Word = tuple[tuple[str, int], ...]


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0] if n < 4096 else _divisors_large(n)


def _divisors_large(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def strategies(
    cluster: Cluster, roles: tuple[str, ...], most_stages: int
) -> Iterator[Strategy]:
    """Every word: stages outermost, then the batch (slow links first), a replica's axes innermost.

    The batch is split by one role, or by plain `dp` outside one of the zero roles.
    """
    zeros = [r for r in roles if ROLES[r].batch and ROLES[r].shards]
    staging = [r for r in roles if ROLES[r].stages]
    for stages in divisors(cluster.devices) if staging else [1]:
        if stages > most_stages:
            continue
        rest = cluster.devices // stages
        for inside in insides(rest, max(cluster.levels[-1].size, 8), roles):
            ways = rest
            for _, size in inside:
                ways //= size
            for batch in batch_words(ways, "dp" in roles, zeros):
                word = (*((r, stages) for r in staging), *batch, *inside)
                yield Strategy(tuple((r, n) for r, n in word if n > 1 or r == FLAG))


def insides(devices: int, near: int, roles: tuple[str, ...]) -> Iterator[Word]:
    """Axes inside a replica of the batch, on at most `near` devices: a tensor axis with tokens or
    the whole between its operators, an axis of tokens, an axis of experts outside them."""
    near_by = [d for d in divisors(devices) if d <= near]
    # a role that may also split heads finds all that one for tokens alone does
    tokens = sorted((r for r in roles if ROLES[r].sequence), key=lambda r: not ROLES[r].heads)
    experts = [r for r in roles if ROLES[r].experts]
    inner: list[Word] = [()]
    for role in (r for r in roles if ROLES[r].operators):
        for ways in near_by[1:]:
            inner.append(((role, ways),))
            if FLAG in roles:
                inner.append(((role, ways), (FLAG, 1)))
    inner += [((role, ways),) for role in tokens[:1] for ways in near_by[1:]]
    yield from inner
    for role in experts:
        for word in inner:
            taken = 1
            for _, size in word:
                taken *= size
            for ways in divisors(devices // taken)[1:]:
                if ways <= near:
                    yield ((role, ways), *word)


def batch_words(ways: int, plain: bool, zeros: list[str]) -> Iterator[Word]:
    if ways == 1:
        yield ()
        return
    if plain:
        yield (("dp", ways),)
    for role in zeros:
        yield ((role, ways),)
        if plain:
            for outer in divisors(ways)[1:-1]:
                yield (("dp", outer), (role, ways // outer))
