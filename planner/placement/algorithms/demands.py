"""Optional constraints of small constraint models: lifetimes, and first-come-first-served ports.

Both hold for every execution, so the model stays a relaxation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple, Protocol

from ortools.sat.python import cp_model

from ....cost_model.placement.arrays import Floats, GraphArrays
from ....ir.plan.placement import LinkModel
from ...solvers.constraint_program import only_if


class TensorSend(NamedTuple):
    """A transfer: producing operator, target device, begin (ticks), duration (ticks), and whether
    it happens.
    """

    source: int
    to: int
    begin: cp_model.IntVar
    spent: int
    happens: cp_model.IntVar


class Timed(Protocol):
    """Interface of a constraint model: its variables by operator, device and transfer."""

    @property
    def model(self) -> cp_model.CpModel: ...
    @property
    def work(self) -> GraphArrays: ...
    @property
    def link(self) -> LinkModel: ...
    @property
    def unit(self) -> float: ...
    @property
    def size(self) -> Floats: ...
    @property
    def devices(self) -> range: ...
    @property
    def at(self) -> list[list[cp_model.IntVar]]: ...
    @property
    def start(self) -> list[cp_model.IntVar]: ...
    @property
    def end(self) -> list[cp_model.IntVar]: ...
    @property
    def sends(self) -> dict[tuple[int, int], TensorSend]: ...
    @property
    def apart(self) -> list[cp_model.IntVar]: ...
    def time(self, name: str) -> cp_model.IntVar: ...
    def memory_units(self, device: int) -> int: ...


def lifetimes(model: Timed) -> None:
    """Add the `infer` rule: outputs and received copies use memory until their last use."""
    unit = model.unit
    until = _needed_until(model)
    last = _last_uses(model)
    for d in model.devices:
        spans, sizes = list[cp_model.IntervalVar](), list[int]()
        for v, operator in enumerate(model.work.operators):
            here = model.at[v][d]
            for end, size in (
                (until[v], operator["output"]),
                (model.end[v], operator["temporary"]),
            ):
                if size >= unit:
                    spans.append(_span(model, model.start[v], end, here))
                    sizes.append(int(size // unit))
        for (tensor, there), send in model.sends.items():
            if there == d and model.size[tensor] >= unit:
                spans.append(_span(model, send.begin, last[tensor, d], send.happens))
                sizes.append(int(model.size[tensor] // unit))
        persistent = [int(b // unit) for b in model.work.operators["persistent"].tolist()]
        always = sum(b * model.at[v][d] for v, b in enumerate(persistent) if b)
        memory_units = model.model.new_int_var(0, model.memory_units(d), "")
        model.model.add(memory_units + always <= model.memory_units(d))
        model.model.add_cumulative(spans, sizes, memory_units)


def _needed_until(model: Timed) -> list[cp_model.IntVar]:
    """(n) last time at which each output is needed on its own device."""
    needed_until = [model.time("") for _ in model.end]
    for v, end in enumerate(model.end):
        model.model.add(needed_until[v] >= end)
    for e, edge in enumerate(model.work.edges):
        source, target = int(edge["source"]), int(edge["target"])
        local = model.model.add(needed_until[source] >= model.end[target])
        if model.apart:
            only_if(local, model.apart[e].negated())
    for send in model.sends.values():
        sent = model.model.add(needed_until[send.source] >= send.begin + send.spent)
        only_if(sent, send.happens)
    return needed_until


def _last_uses(model: Timed) -> dict[tuple[int, int], cp_model.IntVar]:
    """Last time at which each received copy is needed."""
    last = {key: model.time("") for key in model.sends}
    for edge in model.work.edges:
        source, target, tensor = (int(edge[n]) for n in ("source", "target", "tensor"))
        for d in model.devices if model.sends else ():
            used = model.model.add(last[tensor, d] >= model.end[target])
            only_if(used, model.at[target][d], model.at[source][d].negated())
    return last


def _span(
    model: Timed, begin: cp_model.IntVar, end: cp_model.IntVar, here: cp_model.IntVar
) -> cp_model.IntervalVar:
    return model.model.new_optional_interval_var(begin, model.time(""), end, here, "")


def in_turn(model: Timed) -> None:
    """Add first-come-first-served ports: transfers run in the order in which their operators end,
    those of one operator in the order of its edges.
    """
    turns = _Turns(model)
    for ((one, _), a), ((other, _), b) in combinations(model.sends.items(), 2):
        if not a.spent or not b.spent or one == other:
            continue
        happen = [a.happens, b.happens]
        if a.source == b.source:
            earlier, later = (a, b) if turns.last[one] < turns.first[other] else (b, a)
            if earlier is a or turns.last[other] < turns.first[one]:
                turns.follow(earlier, later, happen)
            continue
        order = turns.ended_first(a.source, b.source)
        for meet in turns.meetings(a, b):
            turns.follow(a, b, [*happen, *meet, order])
            turns.follow(b, a, [*happen, *meet, order.Not()])


class _Turns:
    """Order of transfers; `first` and `last` (t): positions of a tensor's first and last edge."""

    def __init__(self, model: Timed) -> None:
        self.model = model
        self.variables: dict[tuple[str, int, int], cp_model.IntVar] = {}
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        for e, tensor in enumerate(model.work.edges["tensor"].tolist()):
            self.first.setdefault(tensor, e)
            self.last[tensor] = e

    def follow(
        self, earlier: TensorSend, later: TensorSend, when: Sequence[cp_model.BoolVarT]
    ) -> None:
        constraint = self.model.model.add(later.begin >= earlier.begin + earlier.spent)
        only_if(constraint, *when)

    def meetings(self, a: TensorSend, b: TensorSend) -> list[list[cp_model.BoolVarT]]:
        """Conditions under which two transfers of different operators use the same port."""
        if a.to == b.to:
            return [[]]
        conditions: list[list[cp_model.BoolVarT]] = [[self.together(a.source, b.source)]]
        if self.model.link == "half-duplex":
            at = self.model.at
            conditions.append([at[b.source][a.to]])
            conditions.append([at[a.source][b.to]])
        return conditions

    def ended_first(self, u: int, w: int) -> cp_model.IntVar:
        """Variable: `u` ends before `w`; unconstrained where both end at once."""
        key = ("first", u, w)
        if key not in self.variables:
            order = self.variables[key] = self.model.model.new_bool_var("")
            ends = self.model.end
            only_if(self.model.model.add(ends[u] <= ends[w]), order)
            only_if(self.model.model.add(ends[w] <= ends[u]), order.negated())
        return self.variables[key]

    def together(self, u: int, w: int) -> cp_model.IntVar:
        """Variable: two operators share a device."""
        key = ("together", u, w)
        if key not in self.variables:
            same = self.variables[key] = self.model.model.new_bool_var("")
            for one, other in zip(self.model.at[u], self.model.at[w], strict=True):
                self.model.model.add(one + other <= 1 + same)
        return self.variables[key]
