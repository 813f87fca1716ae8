"""The space searched: strategy words over a cluster's devices, one for all layers.

Axes inside a replica of the batch cost the most to price; they come in families that grow.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ..ir.devices.cluster import Cluster
from ..ir.plan.strategy import FLAG, ROLES, Strategy

Word = tuple[tuple[str, int], ...]
NEAR = 8  # devices that axes inside a replica may span even where links are slower


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0] if n < 4096 else _divisors_large(n)


def _divisors_large(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def strategies(
    devices: int, inside: Word, roles: tuple[str, ...], most_stages: int
) -> Iterator[Strategy]:
    """Every word with these axes inside a replica of the batch: stages outermost, then the batch
    (slow links first), split by one role, or by plain `dp` outside one of the zero roles."""
    zeros = [r for r in roles if ROLES[r].batch and ROLES[r].shards]
    staging = [r for r in roles if ROLES[r].stages]
    rest = devices // prod(size for _, size in inside)
    for stages in divisors(rest) if staging else [1]:
        if stages > most_stages:
            continue
        for batch in batch_words(rest // stages, "dp" in roles, zeros):
            word = (*((r, stages) for r in staging), *batch, *inside)
            yield Strategy(tuple((r, n) for r, n in word if n > 1 or r == FLAG))


def families(cluster: Cluster, roles: tuple[str, ...]) -> list[list[Word]]:
    """Words of axes inside a replica that differ in one size, which grows: a tensor axis with the
    whole or with tokens between its operators, an axis of tokens. They stay near."""
    near = max(cluster.levels[-1].size, NEAR)
    sizes = [d for d in divisors(cluster.devices) if 1 < d <= near]
    # a role that may also split heads finds all that one for tokens alone does
    tokens = sorted((r for r in roles if ROLES[r].sequence), key=lambda r: not ROLES[r].heads)
    found: list[list[Word]] = [[()]]
    for role in (r for r in roles if ROLES[r].operators):
        found.append([((role, ways),) for ways in sizes])
        if FLAG in roles:
            found.append([((role, ways), (FLAG, 1)) for ways in sizes])
    found += [[((role, ways),) for ways in sizes] for role in tokens[:1]]
    return found


def with_experts(cluster: Cluster, roles: tuple[str, ...], inside: Word) -> list[Word]:
    """The word inside an axis of experts, which grows."""
    rest = cluster.devices // prod(size for _, size in inside)
    near = max(cluster.levels[-1].size, NEAR)
    return [
        ((role, ways), *inside)
        for role in roles
        if ROLES[role].experts
        for ways in divisors(rest)
        if 1 < ways <= near
    ]


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
