"""Constraints that optimizers put on plans.

A compressed optimizer (such as 1-bit Adam) does its own communication: every rank along `dp` has all
weights of its stage and contributes its own gradients. So nothing is sharded along `dp`, and all layers
have the same `dp`. One that looks across tensors (clips inside its step) needs all of them on every
rank.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...ir.compression.registry import COMPRESSED_OPTIMIZER_ROLE, COMPRESSED_OPTIMIZERS
from ...ir.errors import UsageError
from ...ir.plan.plan import OptimizerDemand
from ...ir.plan.strategy import ROLES, Strategy


def allowed_roles(
    roles: Iterable[str], optimizer: str, demand: OptimizerDemand = "elementwise"
) -> set[str]:
    """Roles that can be combined with an optimizer."""
    return {role for role in roles if not _refusal(role, optimizer) and not _divides(role, demand)}


def check_strategies(
    strategies: Iterable[Strategy],
    optimizer: str,
    compress: str,
    demand: OptimizerDemand = "elementwise",
) -> None:
    """Raises UsageError where strategies or compression cannot be combined with an optimizer."""
    strategies = list(strategies)
    for strategy in strategies:
        for role, _ in strategy.axes:
            if _divides(role, demand):
                raise UsageError(
                    f"{optimizer} looks at several tensors at once, so that every rank needs all: "
                    f"{strategy} has {role}; pin dp alone"
                )
    if optimizer not in COMPRESSED_OPTIMIZERS:
        return
    if compress != "none":
        raise UsageError(
            f"{optimizer} compresses what it sends itself: leave out --compress {compress}"
        )
    degrees: set[int] = set()
    for strategy in strategies:
        degrees.add(strategy.size(COMPRESSED_OPTIMIZER_ROLE))
        for role, _ in strategy.axes:
            if why := _refusal(role, optimizer):
                raise UsageError(f"{optimizer} {why}: {strategy} has {role}")
    if len(degrees) > 1:
        raise UsageError(
            f"{optimizer} needs one {COMPRESSED_OPTIMIZER_ROLE} for all layers, not {sorted(degrees)}"
        )


def _divides(role: str, demand: OptimizerDemand) -> bool:
    """Whether a role leaves ranks without tensors that the optimizer must see."""
    what = ROLES[role]
    divides = what.shards or what.stages or (what.divides_operators and not what.sequence)
    return demand == "across tensors" and bool(divides)


def _refusal(role: str, optimizer: str) -> str:
    """Reason why a role cannot be combined with an optimizer; empty where it can."""
    if optimizer not in COMPRESSED_OPTIMIZERS:
        return ""
    if role != COMPRESSED_OPTIMIZER_ROLE and COMPRESSED_OPTIMIZERS[optimizer].meets_some:
        return f"lets ranks of {COMPRESSED_OPTIMIZER_ROLE} run apart, and knows no other axis"
    if ROLES[role].shards:
        return f"keeps all weights on every rank, which {COMPRESSED_OPTIMIZER_ROLE} does"
    shards = ROLES[role].divides_operators and not ROLES[role].sequence
    return (
        "looks at whole tensors"
        if shards and COMPRESSED_OPTIMIZERS[optimizer].needs_full_tensors
        else ""
    )
