"""Optimizers that talk to other ranks themselves, such as 1-bit Adam: what plans they allow.

Every rank along `dp` holds all weights of its stage and gives its own gradients; what is sent is the
optimizer's affair. So there is nothing to shard along `dp`, and all layers have the same `dp`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..ir.compression.registry import LEADERS
from ..ir.errors import UsageError
from ..ir.strategy import ROLES, Strategy


def allowed(roles: Iterable[str], optimizer: str) -> set[str]:
    """Those roles that an optimizer leaves open."""
    return {r for r in roles if optimizer not in LEADERS or not ROLES[r].shards}


def check(strategies: Iterable[Strategy], optimizer: str, compress: str) -> None:
    """Raises UsageError where strategies or compression do not go with an optimizer."""
    if optimizer not in LEADERS:
        return
    if compress != "none":
        raise UsageError(f"{optimizer} compresses what it sends itself: leave out --compress {compress}")
    strategies = list(strategies)
    ways = {s.size("dp") for s in strategies}
    if len(ways) > 1:
        raise UsageError(f"{optimizer} needs one dp for all layers, not {sorted(ways)}")
    for strategy in strategies:
        sharded = [r for r, _ in strategy.axes if ROLES[r].shards]
        if sharded:
            raise UsageError(
                f"{optimizer} keeps all weights on every rank: take dp instead of {sharded[0]} in "
                f"{strategy}"
            )
