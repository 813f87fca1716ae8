"""What exchanges beside compute save, as terms: less than nothing, beside the exchanges in full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ...ir.plan.plan import Plan
from ...ir.plan.workload import StrategyBytes
from ..communication.data_parallel import BatchAxes
from ..communication.overlap import exposed_exchanges
from ..quantity import amount
from .term import Term, priced_term

BESIDE = "derived: the longer of both and contention; the first gather and the last sum run alone"
NAMES = ("gathers beside calls", "gathers and sums beside calls", "sums beside backward")


class OverlapTerms(NamedTuple):
    """Seconds saved over a step in forward, backward and synchronisation."""

    forward: Term
    backward: Term
    sync: Term


def overlap_terms(
    plan: Plan, share: StrategyBytes, axes: BatchAxes, forward: float, backward: float
) -> Iterator[OverlapTerms]:
    """What the calls of one strategy save, which compute for so many seconds a micro-batch; nothing for
    a plan of another engine."""
    if plan.engine != "plait":
        return
    sent = axes.stage_seconds(share.bytes)
    added = exposed_exchanges(sent, forward, backward, axes.execution, axes.cluster)
    times = amount("m", plan.micro_batches)
    beside = (
        times * amount("h", added.forward - sent.gather),
        times * amount("h", added.backward - sent.gather_again - sent.scatter),
        amount("h", added.reduce - sent.reduce),
    )
    yield OverlapTerms(
        *(priced_term(name, saved, BESIDE) for name, saved in zip(NAMES, beside, strict=True))
    )
