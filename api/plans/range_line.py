"""How sure a plan's step time is, and which other plans may be as fast, in a line."""

from __future__ import annotations

from ...cost_model.explain.confidence import CLOSE, step_range
from ...ir.plan.plan import Plan
from ...ir.text.units import seconds


def range_line(plan: Plan) -> str:
    """`range     1.01 ms to 1.45 ms in four of five cases; ...`, as a line of a plan's summary."""
    step = plan.prediction.step_seconds
    close = [
        a for a in plan.alternatives if a.fits and step / CLOSE <= a.step_seconds <= CLOSE * step
    ]
    others = ("no other layout lies" if not close else "1 other lies") + " within"
    if len(close) > 1:
        others = f"{len(close)} others lie within"
    low, high = map(seconds, step_range(step))
    return (
        f"  range     {low} to {high} in four of five cases; "
        f"{others} {CLOSE - 1:.0%}, where order is not known"
        + (f": {close[0].name} ×{close[0].micro_batches} first" if close else "")
    )
