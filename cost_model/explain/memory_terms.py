"""Why a device of a stage needs the bytes it needs: the terms of `memory`, with their formulas."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.plan.plan import Plan
from ...ir.plan.workload import StageBytes
from ..communication.data_parallel import BatchAxes, axes_of
from ..execution_model import GENERATED
from ..memory.peak import MARGIN, Waiting, Worst, at_work, part_terms, worst_of
from .term import Symbol, Term, total

LEGEND = tuple(
    Symbol(name, about)
    for name, about in (
        ("H", "bytes of weights held by the stage's calls"),
        ("T", "of them trained"),
        ("G", "bytes of the gradients of weights that are there at the worst moment of a step"),
        (
            "S",
            "bytes that then wait for backward, of all micro-batches, or for calls that read them",
        ),
        ("M", "bytes that the call at work, or the optimizer, then holds itself"),
        ("C", "bytes of gathered weights, of copies that are sent and of what is on its way, then"),
        ("k", "states of the optimizer per element"),
        ("e", "bytes of a state's element"),
        ("i", "bytes of a weight's element"),
        ("z", "pieces it is cut into along zero axes"),
        ("f", "parts of every weight that are cut, where not all is"),
        ("j", "in so many parts"),
        ("q", "sum of the terms above"),
    )
)


def memory_term(plan: Plan, number: int) -> Term:
    """Peak bytes of a device of a stage as a tree; the sum is the plan's."""
    stage, device = plan.stages[number], plan.cluster.device
    waiting = Waiting(stage.waiting, plan.micro_batches, plan.chunks)
    parts = [(s.bytes, axes_of(plan, s.strategy, s.bytes.item)) for s in stage.shares]
    found: dict[str, list[Term]] = {}
    for (share, axes), moment in zip(
        parts, worst_of(parts, GENERATED, waiting, device), strict=True
    ):
        for term in _share(plan, share, axes, moment):
            found.setdefault(term.name, []).append(term)
    terms = [own[0] if len(own) == 1 else total(name, own, "B") for name, own in found.items()]
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
    """The most that micro-batches hold on a device of a stage while calls run: all but weights, their
    gradients and optimizer states. Calls of several strategies are at their worst side by side."""
    stage = plan.stages[number]
    waiting = Waiting(stage.waiting, plan.micro_batches, plan.chunks)
    total = 0
    for share in stage.shares:
        axes = axes_of(plan, share.strategy, share.bytes.item)
        total += max(
            m.batch + m.activations + m.temporaries + m.communication
            for m in at_work(share.bytes, axes, GENERATED, waiting)
        )
    return total


def _share(plan: Plan, share: StageBytes, axes: BatchAxes, moment: Worst) -> list[Term]:
    made = []
    for name, amount in part_terms(share, axes, plan.optimizer, GENERATED, moment).items():
        formula, symbols = FORMULAS[name](share, axes, plan, moment)
        made.append(Term(name, amount, "B", formula, "derived", symbols))
    return made


Formula = tuple[str, dict[str, float]]
Explain = Callable[[StageBytes, BatchAxes, Plan, Worst], Formula]


def _optimizer(bytes_: StageBytes, axes: BatchAxes, plan: Plan, _: Worst) -> Formula:
    kept = plan.optimizer
    symbols = {"T": bytes_.trained, "i": bytes_.item, "k": kept.states, "e": kept.state_bytes}
    formula, pieces = _kept("T", axes, "optimizer")
    formula = f"({formula})" if " - " in formula else formula
    return f"floor({formula}/i)*k*e", {**symbols, **pieces}


def _kept(symbol: str, axes: BatchAxes, what: str) -> Formula:
    """What of an amount lies here: a piece of what is cut, and the rest."""
    pieces = {"z": float(axes.pieces(what))}
    if not axes.copies or what not in axes.shards:
        return f"floor({symbol}/z)", pieces
    over, under = axes.fraction
    cut = f"floor({symbol}*f/j)"
    return f"{symbol} - {cut} + floor({cut}/z)", {**pieces, "f": over, "j": under}


def _parameters(bytes_: StageBytes, axes: BatchAxes, plan: Plan, _: Worst) -> Formula:
    formula, symbols = _kept("H", axes, "parameter")
    return formula, {"H": bytes_.held, **symbols}


FORMULAS: dict[str, Explain] = {
    "parameters": _parameters,
    "gradients": lambda b, a, p, m: ("G", {"G": m.gradients}),
    "optimizer": _optimizer,
    "activations": lambda b, a, p, m: ("S", {"S": m.activations}),
    "batch data": lambda b, a, p, m: ("D", {"D": m.batch}),
    "temporaries": lambda b, a, p, m: ("M", {"M": m.temporaries}),
    "communication": lambda b, a, p, m: ("C", {"C": m.communication}),
    "compression": lambda b, a, p, m: ("Y", {"Y": a.compression_bytes(b.trained, b.small)}),
}
LEGEND += (
    Symbol("Y", "bytes of errors, replicas and exact pieces that compression keeps"),
    Symbol("D", "bytes that follow from the batch alone, and what making them takes"),
    Symbol("c", "bytes of the runtime itself: context, libraries"),
)
