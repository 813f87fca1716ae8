"""The space searched: strategy words over a cluster's devices, one for all layers."""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.cluster import Cluster
from ..ir.strategy import ROLES, Strategy


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0] if n < 4096 else _divisors_large(n)


def _divisors_large(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def strategies(
    cluster: Cluster, roles: tuple[str, ...], most_stages: int
) -> Iterator[Strategy]:
    """Every word: stages outermost, then the batch (slow links first), tensor parallel innermost.

    The batch is split by one role, or by plain `dp` outside one of the zero roles.
    """
    zeros = [r for r in roles if ROLES[r].batch and ROLES[r].shards]
    for stages in divisors(cluster.devices) if "pp" in roles else [1]:
        if stages > most_stages or cluster.devices % stages:
            continue
        rest = cluster.devices // stages
        for tensor in divisors(rest) if "tp" in roles else [1]:
            if tensor > cluster.levels[-1].size and tensor > 8:
                continue
            for batch in batch_words(rest // tensor, "dp" in roles, zeros):
                word = (("pp", stages), *batch, ("tp", tensor))
                yield Strategy(tuple((r, n) for r, n in word if n > 1))


def batch_words(
    ways: int, plain: bool, zeros: list[str]
) -> Iterator[tuple[tuple[str, int], ...]]:
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
