"""Prices of the operators in a report: on one device of a plan, or in a model as traced."""

from __future__ import annotations

from ...cost_model.operators.operator_cost import COLLECTIVES, Pricer, count_flops
from ...ir.analysis.bound_sharding import BoundSharding
from ...ir.lowering.localize import VIEWS
from ...ir.model.loops import declaration, shard_aware_name, site_of
from ...ir.model.mesh import MICRO
from ...ir.model.model import Function, Op
from ...ir.text.units import figure, seconds
from .module_graph import Price, PricedOp
from .report import Facts

FREE = frozenset({"comm.cut", "comm.share"})
Splits = dict[int, tuple[tuple[str, str], ...]]
UNITS = ((1e15, "Pflop"), (1e12, "Tflop"), (1e9, "Gflop"), (1e6, "Mflop"), (1e3, "kflop"))


def flops_text(number: float) -> str:
    """1.72 Pflop, 538 Mflop."""
    for size, unit in UNITS:
        if number >= size:
            return f"{figure(number / size)} {unit}"
    return f"{number:.0f} flop"


def scope_of(op: Op) -> tuple[str, ...]:
    return tuple(part for part in op.scope.split(".") if part)


def as_traced(function: Function) -> Price:
    """Prices for operators as traced: flops and shapes, no seconds."""

    def price(op: Op) -> PricedOp:
        declared = declaration(site_of(op, function.types))
        flops = count_flops(declared)
        facts = (*_shapes(function, op), ("work", flops_text(flops)))
        if declared is None:
            facts = (*facts, ("split", "never: no loops are declared for it"))
        work = declared.work if declared else "opaque"
        return PricedOp(op, scope_of(op), work, 0.0, flops, "", facts)

    return price


def on_a_device(local: Function, bound: BoundSharding, pricer: Pricer) -> Price:
    """Prices for operators and collectives of the per-device program, of one micro-batch."""
    splits = _splits(local, bound)

    def price(op: Op) -> PricedOp:
        op_price = pricer.op(local, op)
        cost, flops = op_price.seconds, op_price.flops
        facts = (*_shapes(local, op), ("seconds", seconds(cost)))
        if op.target.startswith("comm.") and op.target[5:] in COLLECTIVES:
            work = "view" if op.target in FREE else "communication"
            axis = pricer.mesh.axes[pricer.mesh.index(str(op.args[1]))]
            facts = (*facts, ("over", f"{axis.name}, {axis.size} devices"))
            return PricedOp(op, scope_of(op), work, cost, 0.0, "", facts)
        loops = splits.get(id(op), ())
        names = " · ".join(dict.fromkeys(axis for axis, _ in loops)) or "not split"
        split = (
            ", ".join(f"{axis} splits {loop}" for axis, loop in loops) or "whole on every device"
        )
        facts = (*facts, ("work", flops_text(flops)), ("split", split))
        return PricedOp(op, scope_of(op), _work(local, op), cost, flops, names, facts)

    return price


def _work(local: Function, op: Op) -> str:
    declared = declaration(site_of(op, local.types))
    return declared.work if declared else "opaque"


def _shapes(function: Function, op: Op) -> Facts:
    reads = " ".join(str(function.types[v]) for v in op.operands())
    makes = " ".join(str(function.types[v]) for v in op.results if v >= 0)
    pairs = (("operator", op.target), ("reads", reads), ("makes", makes), ("module", op.scope))
    return tuple((name, text) for name, text in pairs if text)


def _splits(local: Function, bound: BoundSharding) -> Splits:
    """Per local operator, which mesh axis splits which loop of the traced operator.

    The per-device program keeps the order of the operators and adds collectives and averages.
    """
    splits: Splits = {}
    place, ops = 0, bound.function.ops
    for op in local.ops:
        if place < len(ops) and _stands_for(op, ops[place]):
            options = zip(bound.mesh.axes, bound.strategies[place], strict=True)
            devices = (pair for pair in options if pair[0].size > 1 and pair[0].name != MICRO)
            splits[id(op)] = tuple(
                (axis.name, factor.loop) for axis, option in devices for factor in option.splits
            )
            place += 1
    return splits


def _stands_for(op: Op, original: Op) -> bool:
    if op.scope != original.scope or len(op.results) != len(original.results):
        return False
    targets = (original.target, shard_aware_name(original.target))
    return op.target in targets or (original.target in VIEWS and "reshape" in op.target)
