"""What a constraint model may leave out, and small ones do not: lifetimes, and first come first served.

Both hold for every execution, so the model stays a relaxation of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple, Protocol

from ortools.sat.python import cp_model

from ....cost_model.placement.arrays import Floats, Work
from ....ir.placement import LinkModel


class Send(NamedTuple):
    """A transfer: the operator that makes the tensor, the device it goes to, when it begins, its
    ticks, and whether it happens."""

    source: int
    to: int
    begin: cp_model.IntVar
    spent: int
    happens: cp_model.IntVar


class Timed(Protocol):
    """What is asked of a constraint model: its variables by operator, device and transfer."""

    model: cp_model.CpModel
    work: Work
    link: LinkModel
    unit: float
    size: Floats
    devices: range
    at: list[list[cp_model.IntVar]]
    start: list[cp_model.IntVar]
    end: list[cp_model.IntVar]
    sends: dict[tuple[int, int], Send]
    apart: list[cp_model.IntVar]

    def time(self, name: str) -> cp_model.IntVar: ...
    def room(self, device: int) -> int: ...


def lifetimes(model: Timed) -> None:
    """The `infer` rule: outputs and received copies take room until their last use."""
    unit = model.unit
    held = _kept(model)
    last = _last_uses(model)
    for d in model.devices:
        spans, sizes = [], []
        for v, own in enumerate(model.work.operators):
            here = model.at[v][d]
            for end, size in ((held[v], own["output"]), (model.end[v], own["temporary"])):
                if size >= unit:
                    spans.append(_span(model, model.start[v], end, here))
                    sizes.append(int(size // unit))
        for (tensor, there), send in model.sends.items():
            if there == d and model.size[tensor] >= unit:
                spans.append(_span(model, send.begin, last[tensor, d], send.happens))
                sizes.append(int(model.size[tensor] // unit))
        persistent = [int(b // unit) for b in model.work.operators["persistent"].tolist()]
        always = sum(b * model.at[v][d] for v, b in enumerate(persistent) if b)
        room = model.model.new_int_var(0, model.room(d), "")
        model.model.add(room + always <= model.room(d))
        model.model.add_cumulative(spans, sizes, room)


def _kept(model: Timed) -> list[cp_model.IntVar]:
    """(n) until when outputs are needed at home."""
    kept = [model.time("") for _ in model.end]
    for v, end in enumerate(model.end):
        model.model.add(kept[v] >= end)
    for e, edge in enumerate(model.work.edges):
        source, target = int(edge["source"]), int(edge["target"])
        local = model.model.add(kept[source] >= model.end[target])
        if model.apart:
            local.only_enforce_if(model.apart[e].Not())
    for send in model.sends.values():
        sent = model.model.add(kept[send.source] >= send.begin + send.spent)
        sent.only_enforce_if(send.happens)
    return kept


def _last_uses(model: Timed) -> dict[tuple[int, int], cp_model.IntVar]:
    """Until when received copies are needed."""
    last = {key: model.time("") for key in model.sends}
    for edge in model.work.edges:
        source, target, tensor = (int(edge[n]) for n in ("source", "target", "tensor"))
        for d in model.devices if model.sends else ():
            used = model.model.add(last[tensor, d] >= model.end[target])
            used.only_enforce_if([model.at[target][d], model.at[source][d].Not()])
    return last


def _span(
    model: Timed, begin: cp_model.IntVar, end: cp_model.IntVar, here: cp_model.IntVar
) -> cp_model.IntervalVar:
    return model.model.new_optional_interval_var(begin, model.time(""), end, here, "")


def in_turn(model: Timed) -> None:
    """Ports serve transfers in the order in which their operators ended, and those of one operator
    in the order of its edges."""
    turns = _Turns(model)
    for ((one, _), a), ((other, _), b) in combinations(model.sends.items(), 2):
        if not a.spent or not b.spent or one == other:
            continue
        happen = [a.happens, b.happens]
        if a.source == b.source:
            early, late = (a, b) if turns.last[one] < turns.first[other] else (b, a)
            if early is a or turns.last[other] < turns.first[one]:
                turns.follow(early, late, happen)
            continue
        order = turns.ended_first(a.source, b.source)
        for meet in turns.meetings(a, b):
            turns.follow(a, b, [*happen, *meet, order])
            turns.follow(b, a, [*happen, *meet, order.Not()])


class _Turns:
    """Who comes first: `first` and `last` (t) are the places of a tensor's edges."""

    def __init__(self, model: Timed) -> None:
        self.model = model
        self.known: dict[tuple[str, int, int], cp_model.IntVar] = {}
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        for e, tensor in enumerate(model.work.edges["tensor"].tolist()):
            self.first.setdefault(tensor, e)
            self.last[tensor] = e

    def follow(self, early: Send, late: Send, when: Sequence[cp_model.BoolVarT]) -> None:
        later = self.model.model.add(late.begin >= early.begin + early.spent)
        later.only_enforce_if(when)

    def meetings(self, a: Send, b: Send) -> list[list[cp_model.BoolVarT]]:
        """When two transfers of different operators want one port."""
        if a.to == b.to:
            return [[]]
        found: list[list[cp_model.BoolVarT]] = [[self.together(a.source, b.source)]]
        if self.model.link == "half-duplex":
            at = self.model.at
            found += [[at[b.source][a.to]], [at[a.source][b.to]]]
        return found

    def ended_first(self, u: int, w: int) -> cp_model.IntVar:
        """Whether `u` ended before `w`; free where both end at once."""
        key = ("first", u, w)
        if key not in self.known:
            order = self.known[key] = self.model.model.new_bool_var("")
            ends = self.model.end
            self.model.model.add(ends[u] <= ends[w]).only_enforce_if(order)
            self.model.model.add(ends[w] <= ends[u]).only_enforce_if(order.Not())
        return self.known[key]

    def together(self, u: int, w: int) -> cp_model.IntVar:
        """Whether two operators share a device."""
        key = ("together", u, w)
        if key not in self.known:
            same = self.known[key] = self.model.model.new_bool_var("")
            for one, other in zip(self.model.at[u], self.model.at[w], strict=True):
                self.model.model.add(one + other <= 1 + same)
        return self.known[key]
