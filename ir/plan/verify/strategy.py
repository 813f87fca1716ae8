"""Checks of strategies, and of what is compressed along their axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from ...compression.registry import COMPRESSED_OPTIMIZERS, PROGRAMS, ROW_PROGRAMS
from ...errors import FileError
from ...model.verify import require
from ..flat_shard import FULL
from ..plan import CompressionChoice, Plan
from ..strategy import MAX_AXIS_SIZE, ROLES, SEQUENCE_FLAG, Strategy


def verify_strategy(strategy: Strategy, where: str) -> None:
    """Known roles, once each, and a fraction only where zero3 shards one."""
    for i, (role, size) in enumerate(strategy.axes):
        require(role in ROLES, f"{where}.axes[{i}]", f"unknown role {role!r:.80}")
        require(size <= MAX_AXIS_SIZE, f"{where}.axes[{i}]", f"more than {MAX_AXIS_SIZE} ranks")
    names = [role for role, size in strategy.axes if (role, size) != (SEQUENCE_FLAG, 1)]
    require(len(set(names)) == len(names), f"{where}.axes", "a role stands twice")
    over, under = strategy.fraction
    proper = 0 < over < under and gcd(over, under) == 1 and strategy.supports_fraction
    require((over, under) == FULL or proper, f"{where}.fraction", "not between 0 and 1")


def verify_among(strategy: Strategy, strategies: Sequence[Strategy], where: str) -> None:
    require(strategy in strategies, where, "no layers have this strategy")


def verify_compression(plan: Plan) -> None:
    """Programs exist, and their roles are axes of a strategy of the plan."""
    for i, choice in enumerate(plan.compression):
        verify_choice(choice, plan.strategies, f"$.compression[{i}]")
    keys = [(c.strategy, c.role, c.subject) for c in plan.compression]
    require(len(set(keys)) == len(keys), "$.compression", "one message has two programs")
    if plan.optimizer.name in COMPRESSED_OPTIMIZERS:
        require(len(plan.strategies) == 1, "$.optimizer", "needs one strategy for all layers")


def verify_choice(choice: CompressionChoice, strategies: Sequence[Strategy], where: str) -> None:
    verify_among(choice.strategy, strategies, f"{where}.strategy")
    roles = [role for role, _ in choice.strategy.axes]
    require(choice.role in roles, f"{where}.role", f"no axis {choice.role!r:.80} in its strategy")
    by_name = ROW_PROGRAMS if choice.subject == "rows" else PROGRAMS
    program = by_name.get(choice.program)
    if program is None:
        raise FileError(f"{where}.program: no program {choice.program!r:.80}")
    between = ROLES[choice.role].stages
    experts = ROLES[choice.role].experts
    fits = {"gradients": not between, "weights": not between, "activations": True, "rows": experts}
    require(fits[choice.subject], f"{where}.subject", f"{choice.subject} do not travel there")
    sends = program.collective == "send"
    require(
        sends == between, f"{where}.program", f"{choice.program} is no {choice.subject} program"
    )
