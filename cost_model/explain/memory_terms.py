"""Explanation of a stage's peak bytes: the terms of `memory.peak`, with their formulas."""

from __future__ import annotations

from msgspec.structs import replace

from ...ir.plan.groups.view import priced_view
from ...ir.plan.plan import Plan, Stage
from ..communication.data_parallel import axes_of
from ..memory.in_flight import InFlight
from ..memory.peak import (
    PartAmounts,
    margin_bytes,
    part_amounts,
    part_terms,
    stage_peaks,
    while_calls_run,
)
from ..quantity import Quantity, amount
from .term import Symbol, Term, priced_term, total

SYMBOLS = "HTikeYGSDMCUX"  # of the fields of PartAmounts, in their order
LEGEND = tuple(
    Symbol(name, about)
    for name, about in (
        ("H", "bytes of weights of the stage's calls"),
        ("T", "of them trained, with optimizer states here"),
        ("G", "bytes of weight gradients at the peak of a step"),
        ("S", "bytes saved for backward at the peak, of all micro-batches in flight"),
        ("M", "bytes of temporaries of the running call or the optimizer at the peak"),
        ("C", "bytes of gathered weights and of communication buffers at the peak"),
        ("k", "states of the optimizer per element"),
        ("e", "bytes of a state's element"),
        ("i", "bytes of a weight's element"),
        ("z", "shards along the ZeRO axes"),
        ("f", "numerator of the sharded fraction of every weight"),
        ("j", "denominator of the sharded fraction"),
        ("q", "sum of the terms above"),
        ("Y", "bytes of residuals, replicas and exact shards that compression keeps"),
        (
            "U",
            "bytes of the largest tensor that the optimizer steps whole: states, gradient, value",
        ),
        ("D", "bytes of the batch and of batch-only values"),
        ("c", "bytes of the runtime itself: context, libraries"),
    )
)


def memory_term(plan: Plan, number: int, grouped: bool = False) -> Term:
    """Tree of the peak bytes of a device of stage `number`; its sum is the plan's. `grouped`: the plan
    is the view of one of several device groups."""
    if plan.groups:
        view = priced_view(plan, number)
        return replace(memory_term(*view, grouped=True), name=f"stage {number}")
    stage, device = plan.stages[number], plan.cluster.device
    waiting = in_flight_of(plan, stage)
    parts = [
        (s.bytes, axes_of(plan, s.strategy, s.bytes.item_bytes, grouped=grouped))
        for s in stage.bytes_by_strategy
    ]
    execution = parts[0][1].execution
    terms_by_name: dict[str, list[Term]] = {}
    for (share, axes), peak in zip(
        parts, stage_peaks(parts, execution, waiting, device), strict=True
    ):
        amounts = named(part_amounts(share, axes, plan.optimizer, execution, peak))
        for name, quantity in part_terms(amounts, axes).items():
            term = priced_term(name, quantity, "derived", "B")
            terms_by_name.setdefault(name, []).append(term)
    terms = [
        same_name[0] if len(same_name) == 1 else total(name, same_name, "B")
        for name, same_name in terms_by_name.items()
    ]
    margin = margin_bytes(amount("q", sum(t.value for t in terms)))
    runtime, source = amount("c", device.runtime_overhead_bytes), device.source_of("runtime_gb")
    terms += [
        priced_term("margin", margin, "assumed: rounding and fragmentation of the allocator", "B"),
        priced_term("runtime", runtime, source, "B"),
    ]
    return total(f"stage {number}", terms, "B")


def in_flight_of(plan: Plan, stage: Stage) -> InFlight:
    """The micro-batches in flight on a stage of a plan."""
    counts = stage.in_flight_micro_batches, plan.micro_batches, plan.chunks_per_stage
    return InFlight(*counts, stage.waiting_beside)


def named(amounts: PartAmounts[int]) -> PartAmounts[Quantity]:
    """The amounts under their symbols."""
    return PartAmounts(*(amount(n, x) for n, x in zip(SYMBOLS, amounts, strict=True)))


def working_bytes(plan: Plan, number: int) -> int:
    """Upper bound of a stage's working bytes while calls run: all but weights, gradients and
    optimizer states. Sums the peaks of all strategies."""
    stage = plan.stages[number]
    waiting = in_flight_of(plan, stage)
    total = 0
    for share in stage.bytes_by_strategy:
        axes = axes_of(plan, share.strategy, share.bytes.item_bytes)
        peaks = while_calls_run(share.bytes, axes, axes.execution, waiting)
        total += max(
            (m.batch + m.activations + m.temporaries + m.communication for m in peaks), default=0
        )
    return total
