"""Optimizers that talk to other ranks themselves, such as 1-bit Adam: what plans they allow.

Every rank along `dp` holds all weights of its stage and gives its own gradients; what is sent is the
optimizer's affair. So there is nothing to shard along `dp`, and all layers have the same `dp`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...ir.compression.registry import LEADERS, LED
from ...ir.errors import UsageError
from ...ir.plan.strategy import ROLES, Strategy


def allowed(roles: Iterable[str], optimizer: str) -> set[str]:
    """Those roles that an optimizer leaves open."""
    return {role for role in roles if not _refused(role, optimizer)}


def check(strategies: Iterable[Strategy], optimizer: str, compress: str) -> None:
    """Raises UsageError where strategies or compression do not go with an optimizer."""
    if optimizer not in LEADERS:
        return
    if compress != "none":
        raise UsageError(
            f"{optimizer} compresses what it sends itself: leave out --compress {compress}"
        )
    ways = set()
    for strategy in strategies:
        ways.add(strategy.size(LED))
        for role, _ in strategy.axes:
            if why := _refused(role, optimizer):
                raise UsageError(f"{optimizer} {why}: {strategy} has {role}")
    if len(ways) > 1:
        raise UsageError(f"{optimizer} needs one {LED} for all layers, not {sorted(ways)}")


def _refused(role: str, optimizer: str) -> str:
    """Why a role does not go with an optimizer; empty where it does."""
    if optimizer not in LEADERS:
        return ""
    if ROLES[role].shards:
        return f"keeps all weights on every rank, which {LED} does"
    cuts = ROLES[role].operators or ROLES[role].experts
    return "looks at whole tensors" if cuts and LEADERS[optimizer].whole else ""
