"""Runs of a plan's calls, with the times, the work and the saved values they were priced with."""

from __future__ import annotations

from msgspec.structs import replace

from ...ir.plan.plan import Layers
from ...ir.plan.sharding import Sharding
from ..pricing.candidate_pricer import CandidatePricer
from ..question.candidate import CallPoint


def priced_layers(
    pricer: CandidatePricer, call: int, sharding: Sharding, number: int, point: CallPoint
) -> Layers:
    """One call as a run of its own, at a point of its function; `number` is its sharding's."""
    prices, function = pricer.function_prices, pricer.calls[call].function
    price = prices.call_price(function, point)
    assert price is not None, "a plan's calls have prices"
    work = prices.workloads(function, point)
    saved = prices.tables.saved_values(sharding, point)
    return Layers(
        call,
        call + 1,
        number,
        point.memory,
        price.cost.forward.seconds,
        price.cost.backward.seconds,
        work.forward,
        work.backward,
        call in pricer.batch_only,
        saved,
        prices.producers(sharding, saved) if saved else (),
    )


def continues(layers: Layers, other: Layers) -> bool:
    """Whether `other` begins where `layers` end and decides alike."""
    decision = (layers.sharding, layers.memory, layers.batch_only, layers.stage)
    return other.first == layers.last and decision == (
        other.sharding,
        other.memory,
        other.batch_only,
        other.stage,
    )


def append_run(runs: list[Layers], run: Layers, apart: bool = False) -> None:
    """Append a run, or lengthen the last one where it `continues` it and need not stand apart."""
    if runs and not apart and continues(runs[-1], run):
        runs[-1] = replace(runs[-1], last=run.last)
    else:
        runs.append(run)
