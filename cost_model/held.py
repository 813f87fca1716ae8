"""Why a device of a stage needs the bytes it needs: the terms of `memory`, with their formulas."""

from __future__ import annotations

from collections.abc import Callable

from ..ir.amounts import Share, StageBytes
from ..ir.plan import Plan
from .batch_axes import BatchAxes, axes_of
from .memory import MARGIN, PASSING, micro_batches_in_flight, part_terms
from .practice import GENERATED
from .terms import Symbol, Term, total

LEGEND = tuple(
    Symbol(name, about)
    for name, about in (
        ("H", "bytes of weights held by the stage's calls"),
        ("T", "of them trained"),
        ("C", "bytes of weights of the biggest call"),
        ("S", "bytes saved for backward per micro-batch"),
        ("L", "of them by the last call of the model, which become gradients at once"),
        ("X", "bytes that cross to the next stage"),
        ("f", "micro-batches that wait for backward at the worst moment"),
        ("k", "states of the optimizer per element"),
        ("e", "bytes of a state's element"),
        ("i", "bytes of a weight's element"),
        ("z", "pieces it is cut into along zero axes"),
        ("q", "sum of the terms above"),
    )
)


def memory_term(plan: Plan, number: int) -> Term:
    """Peak bytes of a device of a stage as a tree; the sum is the plan's."""
    stage, device = plan.stages[number], plan.cluster.device
    after, count = len(plan.stages) - 1 - number, plan.micro_batches
    waiting = micro_batches_in_flight(after, len(plan.stages), count, plan.chunks)
    found: dict[str, list[Term]] = {}
    for share in stage.shares:
        for term in _share(plan, share, waiting):
            found.setdefault(term.name, []).append(term)
    parts = []
    for name, terms in found.items():
        if name in PASSING or len(terms) == 1:
            parts.append(max(terms, key=lambda t: t.value))
        else:
            parts.append(total(name, terms, "B"))
    above = sum(t.value for t in parts)
    parts += [
        Term("margin", int(MARGIN * above), "B", f"floor({MARGIN}*q)",
             "assumed: rounding and fragmentation of the allocator", {"q": above}),
        Term("runtime", device.runtime_overhead_bytes, "B", "c", device.source_of("runtime_gb"),
             {"c": device.runtime_overhead_bytes}),
    ]  # fmt: skip
    return total(f"stage {number}", parts, "B")


def _share(plan: Plan, share: Share, waiting: float) -> list[Term]:
    axes = axes_of(plan, share.strategy, share.bytes.item)
    values = part_terms(share.bytes, axes, plan.optimizer, GENERATED, waiting)
    made = []
    for name, amount in values.items():
        formula, symbols = FORMULAS[name](share.bytes, axes, plan, waiting)
        made.append(Term(name, amount, "B", formula, "derived", symbols))
    return made


Formula = tuple[str, dict[str, float]]
Explain = Callable[[StageBytes, BatchAxes, Plan, float], Formula]


def _optimizer(bytes_: StageBytes, axes: BatchAxes, plan: Plan, _: float) -> Formula:
    kept = plan.optimizer
    symbols = {"T": bytes_.trained, "i": bytes_.item, "k": kept.states, "e": kept.state_bytes}
    return "floor(floor(T/z)/i)*k*e", {**symbols, "z": axes.pieces("optimizer")}


def _gradients(bytes_: StageBytes, axes: BatchAxes, _: Plan, __: float) -> Formula:
    pieces = axes.pieces("gradient")
    return "floor(floor(T/i)*i/z)", {"T": bytes_.trained, "i": bytes_.item, "z": pieces}


def _communication(bytes_: StageBytes, axes: BatchAxes, _: Plan, __: float) -> Formula:
    copies = 3 if "parameter" in axes.shards else 2 if axes.shards else 1
    return f"{copies}*C + 2*X", {"C": bytes_.biggest_call, "X": bytes_.crossing}


FORMULAS: dict[str, Explain] = {
    "parameters": lambda b, a, p, f: ("floor(H/z)", {"H": b.held, "z": a.pieces("parameter")}),
    "gradients": _gradients,
    "optimizer": _optimizer,
    "activations": lambda b, a, p, f: ("floor(f*(S - L)) + L", {"f": f, "S": b.saved, "L": b.last}),
    "batch data": lambda b, a, p, f: ("D", {"D": b.once}),
    "temporaries": lambda b, a, p, f: ("M", {"M": b.transient}),
    "communication": _communication,
    "compression": lambda b, a, p, f: ("Y", {"Y": a.compression_bytes(b.trained, b.small)}),
}
LEGEND += (
    Symbol("Y", "bytes of errors, replicas and exact pieces that compression keeps"),
    Symbol("D", "bytes that follow from the batch alone, and what making them takes"),
    Symbol("M", "bytes alive at the worst moment inside a forward or backward"),
    Symbol("c", "bytes of the runtime itself: context, libraries"),
)
