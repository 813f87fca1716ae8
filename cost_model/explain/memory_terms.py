"""Explanation of a stage's peak bytes: the terms of `memory.peak`, with their formulas."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.plan.plan import Plan
from ...ir.plan.workload import StageBytes
from ..communication.data_parallel import BatchAxes, axes_of
from ..execution_model import GENERATED
from ..memory.peak import MARGIN, InFlight, PeakBytes, while_calls_run, part_terms, stage_peaks
from .term import Symbol, Term, total

LEGEND = tuple(
    Symbol(name, about)
    for name, about in (
        ("H", "bytes of weights of the stage's calls"),
        ("T", "of them trained"),
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
    )
)


def memory_term(plan: Plan, number: int) -> Term:
    """Tree of the peak bytes of a device of stage `number`; its sum is the plan's."""
    stage, device = plan.stages[number], plan.cluster.device
    waiting = InFlight(stage.in_flight_micro_batches, plan.micro_batches, plan.chunks_per_stage)
    parts = [
        (s.bytes, axes_of(plan, s.strategy, s.bytes.item_bytes)) for s in stage.bytes_by_strategy
    ]
    terms_by_name: dict[str, list[Term]] = {}
    for (share, axes), peak in zip(
        parts, stage_peaks(parts, GENERATED, waiting, device), strict=True
    ):
        for term in _part_terms(plan, share, axes, peak):
            terms_by_name.setdefault(term.name, []).append(term)
    terms = [
        same_name[0] if len(same_name) == 1 else total(name, same_name, "B")
        for name, same_name in terms_by_name.items()
    ]
    above = sum(t.value for t in terms)
    terms += [
        Term(
            "margin",
            int(MARGIN * above),
            "B",
            f"floor({MARGIN}*q)",
            "assumed: rounding and fragmentation of the allocator",
            {"q": above},
        ),
        Term(
            "runtime",
            device.runtime_overhead_bytes,
            "B",
            "c",
            device.source_of("runtime_gb"),
            {"c": device.runtime_overhead_bytes},
        ),
    ]
    return total(f"stage {number}", terms, "B")


def working_bytes(plan: Plan, number: int) -> int:
    """Upper bound of a stage's working bytes while calls run: all but weights, gradients and
    optimizer states. Sums the peaks of all strategies."""
    stage = plan.stages[number]
    waiting = InFlight(stage.in_flight_micro_batches, plan.micro_batches, plan.chunks_per_stage)
    total = 0
    for share in stage.bytes_by_strategy:
        axes = axes_of(plan, share.strategy, share.bytes.item_bytes)
        total += max(
            m.batch + m.activations + m.temporaries + m.communication
            for m in while_calls_run(share.bytes, axes, GENERATED, waiting)
        )
    return total


def _part_terms(plan: Plan, share: StageBytes, axes: BatchAxes, peak: PeakBytes) -> list[Term]:
    terms = []
    for name, amount in part_terms(share, axes, plan.optimizer, GENERATED, peak).items():
        formula, symbols = FORMULAS[name](share, axes, plan, peak)
        terms.append(Term(name, amount, "B", formula, "derived", symbols))
    return terms


Formula = tuple[str, dict[str, float]]
FormulaWriter = Callable[[StageBytes, BatchAxes, Plan, PeakBytes], Formula]


def _optimizer(bytes_: StageBytes, axes: BatchAxes, plan: Plan, _: PeakBytes) -> Formula:
    optimizer = plan.optimizer
    symbols = {
        "T": bytes_.trained_bytes,
        "i": bytes_.item_bytes,
        "k": optimizer.states,
        "e": optimizer.state_bytes,
    }
    formula, shard_symbols = _local_formula("T", axes, "optimizer")
    formula = f"({formula})" if " - " in formula else formula
    return f"floor({formula}/i)*k*e", {**symbols, **shard_symbols}


def _local_formula(symbol: str, axes: BatchAxes, kind: str) -> Formula:
    """Formula of the local bytes of an amount: its shard and the replicated rest."""
    symbols = {"z": float(axes.shard_count(kind))}
    if not axes.remainder_axes or kind not in axes.sharded_kinds:
        return f"floor({symbol}/z)", symbols
    over, under = axes.fraction
    sharded = f"floor({symbol}*f/j)"
    return f"{symbol} - {sharded} + floor({sharded}/z)", {**symbols, "f": over, "j": under}


def _parameters(bytes_: StageBytes, axes: BatchAxes, plan: Plan, _: PeakBytes) -> Formula:
    formula, symbols = _local_formula("H", axes, "parameter")
    return formula, {"H": bytes_.weight_bytes, **symbols}


FORMULAS: dict[str, FormulaWriter] = {
    "parameters": _parameters,
    "gradients": lambda b, a, p, m: ("G", {"G": m.gradients}),
    "optimizer": _optimizer,
    "activations": lambda b, a, p, m: ("S", {"S": m.activations}),
    "batch data": lambda b, a, p, m: ("D", {"D": m.batch}),
    "temporaries": lambda b, a, p, m: ("M", {"M": m.temporaries}),
    "communication": lambda b, a, p, m: ("C", {"C": m.communication}),
    "compression": lambda b, a, p, m: (
        "Y",
        {"Y": a.compression_bytes(b.trained_bytes, b.small_tensor_bytes)},
    ),
}
LEGEND += (
    Symbol("Y", "bytes of residuals, replicas and exact shards that compression keeps"),
    Symbol("D", "bytes of the batch and of batch-only values"),
    Symbol("c", "bytes of the runtime itself: context, libraries"),
)
