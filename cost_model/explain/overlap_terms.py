"""What exchanges beside compute save, as terms: less than nothing, beside the exchanges in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...ir.plan.plan import Plan
from ...ir.plan.workload import StrategyBytes
from ..communication.data_parallel import BatchAxes
from ..communication.overlap import CONTENTION, exposed_exchanges, exposed_seconds
from ..quantity import amount
from .term import Term, priced_term

Calls = Sequence[tuple[int, int]]  # (bytes of weights, number of calls with that many)
BESIDE = "derived: what exchanges and compute share; the first gather and the last sum run alone"
CONTENDING = "assumed: 13 % of what runs beside an exchange (Galvatron's shipped profiles)"
LATE = "derived: the longer of compute and sums, and their contention"
SLOWED = "calls slowed by exchanges"
AFTER = "sums beside backward"
AHEAD = "updated weights gathered beside forward"
# what is saved -> how names of the exchanges begin, in the same half of a step, that it is saved of
SAVINGS = {
    "gathers beside calls": ("all_gather of weights",),
    "gathers and sums beside calls": ("all_gather of weights", "reduce_scatter of gradients"),
    AFTER: ("reduce_scatter over", "all_reduce over"),
    AHEAD: ("all_gather over",),
    "gradients beside the next step": ("reduce_scatter over", "all_reduce over"),
}


class OverlapTerms(NamedTuple):
    """Seconds saved over a step in forward, backward and synchronisation, and what compute then takes
    longer."""

    forward: tuple[Term, ...]
    backward: tuple[Term, ...]
    sync: tuple[Term, ...]


def overlap_terms(
    plan: Plan, share: StrategyBytes, axes: BatchAxes, forward: float, backward: float
) -> OverlapTerms:
    """What the calls of one strategy save, which compute for so many seconds a micro-batch."""
    sent = axes.stage_seconds(share.bytes)
    execution = axes.execution.exchanging("parameter" in axes.sharded_kinds)
    added = exposed_exchanges(sent, forward, backward, execution, axes.cluster)
    within = sent.gather_again + sent.scatter - added.backward
    before, calls, after, ahead, late = SAVINGS
    times = plan.passes
    sync = [
        *_terms(after, sent.reduce - added.reduce, 1),
        *_terms(ahead, sent.update_gather - added.update_gather, 1),
    ]
    if axes.late:
        compute = (forward + backward) * times
        hidden = amount("t_h", exposed_seconds(compute, added.reduce) - added.reduce)
        sync.append(priced_term(late, hidden, LATE))
    return OverlapTerms(
        _terms(before, sent.gather - added.forward, times),
        _terms(calls, within, times),
        tuple(sync),
    )


def _terms(name: str, saved: float, times: int) -> tuple[Term, Term]:
    """What is saved, of which contention has been taken."""
    beside = saved / (1 - CONTENTION)
    return (
        priced_term(name, amount("m", times) * amount("h", -beside), BESIDE),
        priced_term(SLOWED, amount("m", times) * amount("y", CONTENTION * beside), CONTENDING),
    )


class Communication(NamedTuple):
    """Seconds of a step in which a stage's ranks exchange data, and those of them in which they do
    nothing else."""

    seconds: float
    exposed_seconds: float


def communication(term: Term) -> Communication:
    """Of a term, such as that of a stage: collectives, less what exchanges beside compute save."""
    leaves = list(term.leaves())
    total = sum(leaf.value for leaf in leaves if "p" in leaf.symbols)
    return Communication(total, total + sum(x.value for x in leaves if x.name in SAVINGS))


def calls_of(share: StrategyBytes, axes: BatchAxes) -> Calls:
    """The calls whose weights are gathered for forward, and whose gradients are scattered: all."""
    return share.bytes.call_weight_bytes


def calls_again(share: StrategyBytes, axes: BatchAxes) -> Calls:
    """The calls whose weights are gathered for backward: not the last one's, which are still there."""
    retained = axes.retained_bytes(share.bytes)
    counts = dict(share.bytes.call_weight_bytes)
    if retained:
        counts[retained] -= 1
    return tuple(counts.items())
