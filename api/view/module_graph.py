"""The inside of a function: its operators folded by the modules that the user wrote.

    self_attn           opens to   q_proj  k_proj  v_proj  [13 small operators]  attention  o_proj
      q_proj: t view mm                       one operator that works: drawn as the module itself

A box is a run of neighbours in program order, so folding never makes a circle.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import msgspec
from msgspec.structs import replace

from ...ir.model.model import Function, Op
from .layout import arrange
from .report import Box, BoxGraph, Edge, Facts

HEAVY = frozenset({"gemm", "attention", "convolution", "communication"})
FEWEST_TO_FOLD = 3


class PricedOp(msgspec.Struct, frozen=True):
    """An operator with its price; `work` is "view" where it only renames memory."""

    op: Op
    scope: tuple[str, ...]
    work: str
    seconds: float
    flops: float
    strategy: str = ""
    facts: Facts = ()


Price = Callable[[Op], PricedOp]
Run = tuple[PricedOp, ...]


class Inside:
    """Graphs of one function, by key; `key` is the function's own."""

    def __init__(self, function: Function, price: Price, key: str) -> None:
        self.graphs: dict[str, BoxGraph] = {}
        self.forward = _inherit(tuple(map(price, function.forward_ops)))
        self.backward = _inherit(tuple(map(price, function.backward_ops)))
        self.level(self.forward, (), key)

    @property
    def communication_seconds(self) -> float:
        """Of one forward and backward."""
        both = (*self.forward, *self.backward)
        return sum(p.seconds for p in both if p.work == "communication")

    def level(self, ops: Run, prefix: tuple[str, ...], key: str) -> None:
        """One graph: modules below `prefix`, operators that stand in it directly."""
        boxes: list[Box] = []
        members: list[Run] = []
        for run in _runs(ops, prefix):
            visible = [p for p in run if p.work != "view"]
            if visible:
                boxes.append(self.box(run, visible, prefix, f"{key}/{len(boxes)}"))
                members.append(run)
        views = sum(p.work == "view" for p in ops)
        self.graphs[key] = arrange(boxes, _edges(ops, members), views)

    def box(self, run: Run, visible: list[PricedOp], prefix: tuple[str, ...], key: str) -> Box:
        module = _module(visible, len(prefix))
        if module is None and len(visible) == 1:
            return _operator(visible[0])
        backward = [p for p in self.backward if module and p.scope[: len(module)] == module]
        both = (*run, *backward)
        box = Box(
            label=".".join(module[len(prefix) :]) if module else "small operators",
            kind="module",
            about=f"{len(visible)} operators",
            strategy=_common(visible),
            forward_seconds=sum(p.seconds for p in run),
            backward_seconds=sum(p.seconds for p in backward),
            communication_seconds=sum(p.seconds for p in both if p.work == "communication"),
            flops=sum(p.flops for p in both),
            facts=(("module", ".".join(module)),) if module else (),
        )
        if len(visible) == 1:
            facts = tuple(f for f in visible[0].facts if f[0] not in ("seconds", "work", "module"))
            return replace(box, about=_name(visible[0].op), facts=box.facts + facts)
        if module:
            self.level(run, module, key)
        else:
            self.flat(run, visible, key)
        return replace(box, inside=key)

    def flat(self, run: Run, visible: list[PricedOp], key: str) -> None:
        """A folded run of small operators, one box each."""
        edges = _edges(run, [(p,) for p in visible])
        self.graphs[key] = arrange(map(_operator, visible), edges, len(run) - len(visible))


def _inherit(ops: Run) -> Run:
    """Collectives belong to the module of the operator that they are made for, the next one."""
    inherited: list[PricedOp] = []
    scope: tuple[str, ...] = ()
    for priced in reversed(ops):
        if priced.op.target.startswith("comm."):
            priced = replace(priced, scope=priced.scope or scope)
        scope = priced.scope
        inherited.append(priced)
    return tuple(reversed(inherited))


def _runs(ops: Run, prefix: tuple[str, ...]) -> list[Run]:
    """Neighbours of one module together; small operators between modules folded when several."""
    runs: list[Run] = []
    for head, group in groupby(ops, lambda p: p.scope[: len(prefix) + 1]):
        run = tuple(group)
        if len(head) > len(prefix):
            runs.append(run)
            continue
        for heavy, part in groupby(run, lambda p: p.work in HEAVY):
            members = tuple(part)
            few = sum(p.work != "view" for p in members) < FEWEST_TO_FOLD
            runs += [(p,) for p in members] if heavy or few else [members]
    return runs


def _module(visible: list[PricedOp], depth: int) -> tuple[str, ...] | None:
    """The deepest module that all operators of a run stand in, or None above `depth`."""
    first, *others = (p.scope for p in visible)
    equal = [len(set(parts)) == 1 for parts in zip(first, *others, strict=False)]
    length = equal.index(False) if False in equal else len(equal)
    return first[:length] if length > depth else None


def _edges(ops: Run, members: list[Run]) -> list[Edge]:
    """Data between boxes; views pass on the boxes that their operands come from."""
    owner = {id(p): i for i, run in enumerate(members) for p in run}
    producers: dict[int, frozenset[int]] = {}
    edges: list[Edge] = []
    for priced in ops:
        sources = frozenset(s for v in priced.op.operands() for s in producers.get(v, ()))
        box = owner.get(id(priced))
        if box is not None and priced.work != "view":
            edges += [Edge(s, box) for s in sources if s != box]
            sources = frozenset({box})
        producers.update((v, sources) for v in priced.op.results if v >= 0)
    return edges


def _operator(priced: PricedOp) -> Box:
    sent = priced.work == "communication"
    return Box(
        label=_name(priced.op),
        kind="communication" if sent else "operator",
        about="" if sent or priced.work == "pointwise" else priced.work,
        strategy=priced.strategy,
        forward_seconds=priced.seconds,
        communication_seconds=priced.seconds if sent else 0.0,
        flops=priced.flops,
        facts=priced.facts,
    )


def _name(op: Op) -> str:
    """`mm` of `aten.mm.default`."""
    return op.target.split(".")[1] if "." in op.target else op.target


def _common(ops: list[PricedOp]) -> str:
    """The strategy that splits most of the work of a box."""
    weight: dict[str, float] = {}
    for priced in ops:
        if priced.work != "communication":
            before = weight.get(priced.strategy, 0.0)
            weight[priced.strategy] = before + priced.seconds + priced.flops * 1e-15
    return max(weight, key=lambda s: (weight[s], s), default="")
