"""What a plan costs by kind: few enough terms to set two plans side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...ir.plan.plan import Plan
from .overlap_terms import SAVINGS
from .term import Term

DEEPEST = 3  # levels of a plan's tree whose terms are compared


def seconds_by_kind(step: Term, depth: int = 0) -> dict[str, float]:
    """Seconds of a step by kind of operator, collective and wait; `depth` 1: of one of its halves."""
    total: dict[str, float] = {}

    def add(term: Term, depth: int) -> None:
        if not term.parts or depth == DEEPEST or " over " in term.name or " of " in term.name:
            total[term.name] = total.get(term.name, 0.0) + term.value
            return
        for part in term.parts:
            add(part, depth + 1)

    add(step, depth)
    return total


def exposed_step_seconds(step: Term) -> dict[str, float]:
    """As `seconds_by_kind`, of exchanges only what runs beside nothing."""
    total: dict[str, float] = {}
    for half in step.parts:
        for name, amount in exposed_seconds_by_kind(half).items():
            total[name] = total.get(name, 0.0) + amount
    return total


def exposed_seconds_by_kind(half: Term) -> dict[str, float]:
    """Seconds of a stage's forward, backward or synchronisation by kind, none below 0: what runs
    beside compute is taken from the exchanges that do, each in proportion."""
    seconds = seconds_by_kind(half, depth=1)
    for saving in SAVINGS.keys() & seconds.keys():
        saved = seconds.pop(saving)
        sent = [name for name in seconds if name.startswith(SAVINGS[saving])]
        total = sum(seconds[name] for name in sent)
        for name in sent:
            seconds[name] *= max(0.0, 1 + saved / total) if total else 1.0
    return seconds


def fullest_stage_bytes(plan: Plan) -> dict[str, float]:
    """Bytes by kind, of the stage whose peak is highest."""
    stage = max(plan.stages, key=lambda s: s.peak_bytes)
    return {name: float(amount) for name, amount in stage.memory_terms}


def paired(
    ours: Mapping[str, float], theirs: Mapping[str, float]
) -> Iterable[tuple[str, float, float]]:
    """Terms of both, the greatest difference first, and their sums."""
    pairs = [(n, ours.get(n, 0.0), theirs.get(n, 0.0)) for n in dict.fromkeys([*ours, *theirs])]
    pairs = sorted((p for p in pairs if p[1] or p[2]), key=lambda p: -abs(p[2] - p[1]))
    return [*pairs, ("sum", sum(ours.values()), sum(theirs.values()))]
