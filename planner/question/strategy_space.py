"""Strategies to search over a cluster's devices, each applied to all layers.

Pricing a combination of model axes is the expensive part, so they come in families of growing
size, and a family is left once larger sizes stop helping.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt, prod

from ...ir.devices.cluster import Cluster
from ...ir.plan.strategy import ROLES, SEARCHED_ROLES, SEQUENCE_FLAG, Strategy

ModelAxes = tuple[tuple[str, int], ...]  # axes inside a batch replica, outermost first
NEAR_DEVICES = 8  # devices that axes inside a replica may span even where links are slower


def token_degree(model_axes: ModelAxes) -> int:
    """Degree by which these axes shard the tokens of values between calls."""
    flag = Strategy(model_axes).sequence_parallel
    return prod(
        n for role, n in model_axes if ROLES[role].sequence or (flag and ROLES[role].operators)
    )


def inner_batch_degree(model_axes: ModelAxes) -> int:
    """Degree by which model axes (experts) split the batch."""
    return prod(size for role, size in model_axes if ROLES[role].batch)


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    return list(each_divisor(n))


def each_divisor(n: int) -> Iterator[int]:
    """The divisors one after the other, ascending."""
    small = list[int]()
    for d in range(1, isqrt(n) + 1):
        if n % d == 0:
            small.append(d)
            yield d
    yield from (n // d for d in reversed(small) if d * d != n)


def strategies(
    devices: int, model_axes: ModelAxes, roles: tuple[str, ...], most_stages: int
) -> Iterator[Strategy]:
    """Every strategy with these model axes inside a batch replica.

    Stages are outermost, then the batch (slow links first), split by one role, or by `dp` outside
    one of the zero roles.
    """
    zeros = [r for r in roles if ROLES[r].batch and ROLES[r].shards]
    staging = [r for r in roles if ROLES[r].stages]
    rest = devices // prod(size for _, size in model_axes)
    for stages in divisors(rest) if staging else [1]:
        if stages > most_stages:
            continue
        for batch in batch_axes(rest // stages, "dp" in roles, zeros):
            axes = (*((r, stages) for r in staging), *batch, *model_axes)
            yield Strategy(tuple((r, n) for r, n in axes if n > 1 or r == SEQUENCE_FLAG))


def axis_families(cluster: Cluster, roles: tuple[str, ...]) -> list[list[ModelAxes]]:
    """Families of model axes that differ in one growing size: a tensor axis, with activations
    between operators replicated or split by tokens, a token axis, or one whose ranks gather weights in
    slices. They stay on fast links.
    """
    most_devices = max(cluster.levels[-1].size, NEAR_DEVICES)
    sizes = [d for d in divisors(cluster.devices) if 1 < d <= most_devices]
    # a role that may also split heads covers the splits of one for tokens alone
    tokens = sorted((r for r in roles if ROLES[r].sequence), key=lambda r: not ROLES[r].heads)
    families: list[list[ModelAxes]] = [[()]]
    for role in (r for r in roles if ROLES[r].operators):
        families.append([((role, degree),) for degree in sizes])
        if SEQUENCE_FLAG in roles:
            families.append([((role, degree), (SEQUENCE_FLAG, 1)) for degree in sizes])
    asked = (r for r in roles if r not in SEARCHED_ROLES)
    families += [[((role, degree),) for degree in sizes] for role in (*tokens[:1], *asked)]
    return families


def with_experts(
    cluster: Cluster, roles: tuple[str, ...], model_axes: ModelAxes
) -> list[ModelAxes]:
    """These model axes inside an expert axis of growing size."""
    rest = cluster.devices // prod(size for _, size in model_axes)
    most_devices = max(cluster.levels[-1].size, NEAR_DEVICES)
    return [
        ((role, degree), *model_axes)
        for role in roles
        if ROLES[role].experts
        for degree in divisors(rest)
        if 1 < degree <= most_devices
    ]


def batch_axes(degree: int, plain: bool, zeros: list[str]) -> Iterator[ModelAxes]:
    """Axes that split the batch `degree` ways; `plain`: whether `dp` may be used."""
    if degree == 1:
        yield ()
        return
    if plain:
        yield (("dp", degree),)
    for role in zeros:
        yield ((role, degree),)
        if plain:
            for outer in divisors(degree)[1:-1]:
                yield (("dp", outer), (role, degree // outer))
