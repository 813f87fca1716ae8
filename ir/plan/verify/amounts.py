"""Checks of the amounts that a plan is priced from: what they are of exists."""

from __future__ import annotations

from collections.abc import Sequence

from ...model.layout import COLLECTIVE_KINDS
from ...model.tensor import ITEM_BYTES
from ...model.verify import require
from ..plan import Stage
from ..strategy import ROLES, Strategy
from ..workload import CallWork
from .strategy import verify_among

COLLECTIVES = frozenset((*COLLECTIVE_KINDS.values(), "broadcast", "send"))
DTYPES = frozenset(ITEM_BYTES)


def verify_work(work: CallWork, where: str, devices: int) -> None:
    """Operators of known types, collectives of known kinds over groups that exist."""
    for i, kernels in enumerate(work.kernels):
        known = kernels.dtype in DTYPES
        require(known, f"{where}.kernels[{i}].dtype", f"unknown element type {kernels.dtype!r:.80}")
    for i, sent in enumerate(work.collectives):
        at = f"{where}.collectives[{i}]"
        require(sent.kind in COLLECTIVES, f"{at}.kind", f"no collective {sent.kind!r:.80}")
        require(sent.axis in ROLES, f"{at}.axis", f"unknown role {sent.axis!r:.80}")
        require(
            devices % (sent.size * sent.stride) == 0, f"{at}.size", "not a group of the devices"
        )


def verify_stage_amounts(stage: Stage, where: str, strategies: Sequence[Strategy]) -> None:
    """Memory terms once each, bytes of strategies that the plan has, and all of its calls' weights."""
    names = [name for name, _ in stage.memory_terms]
    require(len(set(names)) == len(names), f"{where}.memory_terms", "a term stands twice")
    for i, share in enumerate(stage.bytes_by_strategy):
        at = f"{where}.bytes_by_strategy[{i}]"
        verify_among(share.strategy, strategies, f"{at}.strategy")
        amounts = share.bytes
        require(amounts.item_bytes > 0, f"{at}.bytes.item_bytes", "not above 0")
        parts = (("trained_bytes", "weight_bytes"), ("last_saved_bytes", "saved_bytes"))
        parts += (("small_tensor_bytes", "trained_bytes"), ("sparse_bytes", "trained_bytes"))
        parts += (("tied_bytes", "trained_bytes"),)
        for part, whole in parts:
            fits = getattr(amounts, part) <= getattr(amounts, whole)
            require(fits, f"{at}.bytes.{part}", f"more than {whole}")
        calls = {0, *(size for size, _ in amounts.call_weight_bytes)}
        there = amounts.last_call_weight_bytes in calls
        require(there, f"{at}.bytes.last_call_weight_bytes", "not the weights of one of its calls")
        unread = max((unread for _, unread in amounts.forward_points), default=0)
        fits = unread <= amounts.trained_bytes
        require(fits, f"{at}.bytes.forward_points", "more than trained_bytes are not read")
        partial = amounts.partial_gradient_bytes
        roles = {role for role, _ in share.strategy.model_axes}
        at_axes = f"{at}.bytes.partial_gradient_bytes"
        require(partial.keys() == roles, at_axes, "not the axes inside a replica of its strategy")
        fits = max(partial.values(), default=0) <= amounts.trained_bytes
        require(fits, at_axes, "more than trained_bytes")
