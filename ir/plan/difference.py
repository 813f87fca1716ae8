"""What two plans of one model do differently, call by call."""

from __future__ import annotations

from typing import NamedTuple

from .plan import Layers, Plan


def memory_actions(plan: Plan) -> str:
    """The memory actions of a plan: `keep`, `keep+recompute`."""
    return "+".join(sorted({str(x.memory) for x in plan.layers if not x.batch_only}))


class ChangedRun(NamedTuple):
    """Calls `first` to `last - 1`, and what each of two plans does with them."""

    first: int
    last: int
    before: str
    after: str


def changed_runs(plan: Plan, other: Plan) -> list[ChangedRun]:
    """Runs of calls that two plans of one model treat differently."""
    runs: list[ChangedRun] = []
    for i in range(plan.layers[-1].last):
        before, after = (_decision(p, p.layers_of(i)) for p in (plan, other))
        if before == after:
            continue
        if runs and runs[-1][1:] == (i, before, after):
            runs[-1] = runs[-1]._replace(last=i + 1)
        else:
            runs.append(ChangedRun(i, i + 1, before, after))
    return runs


def _decision(plan: Plan, layers: Layers) -> str:
    return f"{plan.strategy_of(layers)} {layers.memory}"
