"""Placement and schedule of small graphs by constraint programming (CP-SAT): a bound, often a proof.

Optional intervals say on which device an operator runs; a transfer takes its time, and its ports
under the duplex models. Integers are rounded towards an easier problem: times down, room up. So the
bound holds, and what is found is judged like any other placement.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import numpy as np
from ortools.sat.python import cp_model

from ....cost_model.placement.arrays import Floats
from ....ir.placement import LinkModel
from ..bounds import quickest_transfer_us
from ..packing import Packing
from ..problem import Candidate, Problem
from .demands import Send, in_turn, lifetimes

TICKS = 2**30  # of time in the makespan known
ROUNDING = 1e-9  # of a bound: what rounding to ticks may have added
MOST_SENDS = 100  # whose order at the ports is modelled; without it, transfers may overtake
STEPS = (1.0, 10.0, 100.0, 1000.0)  # ticks per us that may give whole numbers


class Proof(NamedTuple):
    """No placement is faster than `bound_us`; `found` may be better than what was known or not.
    `impossible`: none is as fast as the limit."""

    bound_us: float
    found: Candidate | None
    impossible: bool = False


class Exact(Packing):
    """The constraint model of a problem with the ports of a link model, which may be a relaxation of
    the problem's own. It looks for what ends by `limit_us` and starts from a known placement."""

    def __init__(
        self, problem: Problem, link: LinkModel, known: Candidate, limit_us: float
    ) -> None:
        super().__init__(problem)
        self.link = link
        self.spent_us = quickest_transfer_us(problem.work)
        times = np.concatenate([problem.work.duration_us.ravel(), self.spent_us])
        self.scale, self.whole = ticks_per_us(times[np.isfinite(times)], limit_us)
        self.horizon = int(np.ceil(limit_us * self.scale)) + 1
        self.start = [self.time(f"s{v}") for v in range(problem.operators)]
        self.end = [self.time(f"e{v}") for v in range(problem.operators)]
        self.lanes: list[list[cp_model.IntervalVar]] = [[] for _ in self.devices]
        self.out: list[list[cp_model.IntervalVar]] = [[] for _ in self.devices]
        self.inward = self.out if link == "half-duplex" else [[] for _ in self.devices]
        self.sends: dict[tuple[int, int], Send] = {}
        self.apart: list[cp_model.IntVar] = []
        self.operators()
        if len(self.devices) > 1:
            self.transfers()
        for together in (*self.lanes, *self.out, *self.inward):
            if len(together) > 1:
                self.model.add_no_overlap(together)
        if not problem.train:
            lifetimes(self)
        if link != "parallel" and len(self.sends) <= MOST_SENDS:
            in_turn(self)
        self.makespan = self.time("makespan")
        self.model.add_max_equality(self.makespan, self.end)
        self.hint(known)

    def time(self, name: str) -> cp_model.IntVar:
        return self.model.new_int_var(0, self.horizon, name)

    def ticks(self, us: float) -> int:
        return int(np.floor(us * self.scale + 1e-6))

    def operators(self) -> None:
        for v, row in enumerate(self.at):
            sizes = [self.ticks(us) for us in self.work.duration_us[v]]
            for d, here in enumerate(row):
                lane = self.model.new_optional_interval_var(
                    self.start[v], sizes[d], self.end[v], here, ""
                )
                self.lanes[d].append(lane)

    def transfers(self) -> None:
        for e, edge in enumerate(self.work.edges):
            source, target = int(edge["source"]), int(edge["target"])
            spent = self.ticks(self.spent_us[e])
            apart = self.model.new_bool_var("")
            self.apart.append(apart)
            self.model.add(self.start[target] >= self.end[source] + spent * apart)
            for d in self.devices:
                self.model.add(self.at[target][d] - self.at[source][d] <= apart)
                self.model.add(self.at[target][d] + self.at[source][d] + apart <= 2)
            if spent:
                self.far(e, spent)
            if not self.problem.train or (spent and self.link != "parallel"):
                self.sent(e, spent)

    def far(self, e: int, least: int) -> None:
        """Pairs of devices whose link is slower than the quickest."""
        edge, links = self.work.edges[e], self.work.links
        source, target = int(edge["source"]), int(edge["target"])
        if edge["fixed_us"] >= 0:
            return
        for one, other in permutations(self.devices, 2):
            spent = self.ticks(
                links[0, one, other] + links[1, one, other] * self.size[edge["tensor"]]
            )
            if spent > least:
                away = [self.at[source][one], self.at[target][other]]
                after = self.model.add(self.start[target] >= self.end[source] + spent)
                after.only_enforce_if(away)

    def sent(self, e: int, spent: int) -> None:
        """The target of an edge starts after the transfer to its device."""
        edge = self.work.edges[e]
        source, target = int(edge["source"]), int(edge["target"])
        for d in self.devices:
            send = self.send(int(edge["tensor"]), source, d, spent)
            after = self.model.add(self.start[target] >= send.begin + spent)
            after.only_enforce_if([self.at[target][d], self.at[source][d].Not()])

    def send(self, tensor: int, source: int, d: int, spent: int) -> Send:
        """The transfer of a tensor to a device that lacks it; it takes its ports."""
        if (tensor, d) in self.sends:
            return self.sends[tensor, d]
        copy, begin = self.copies[tensor, d], self.time("")
        send = self.sends[tensor, d] = Send(source, d, begin, spent, copy)
        if self.problem.link == "parallel":
            self.model.add(begin == self.end[source])
            return send
        self.model.add(begin >= self.end[source])
        if spent and self.link != "parallel":
            self.inward[d].append(self.port(send, copy))
            for home in self.devices:
                if home != d:
                    sent = self.model.new_bool_var("")
                    self.model.add_bool_or([copy.Not(), self.at[source][home].Not(), sent])
                    self.out[home].append(self.port(send, sent))
        return send

    def port(self, send: Send, used: cp_model.IntVar) -> cp_model.IntervalVar:
        begin, spent = send.begin, send.spent
        return self.model.new_optional_interval_var(begin, spent, begin + spent, used, "")

    def hint(self, known: Candidate) -> None:
        """Start from a known placement, its devices numbered as the model numbers equal ones."""
        name = {d: d for d in self.devices}
        if self.problem.alike:
            seen = list(dict.fromkeys(known.device.tolist()))
            name = dict(
                zip([*seen, *(d for d in self.devices if d not in seen)], self.devices, strict=True)
            )
        hinted = set()
        for v, row in enumerate(self.at):
            for d, here in enumerate(row):
                if here.index not in hinted:
                    hinted.add(here.index)
                    self.model.add_hint(here, int(name[int(known.device[v])] == d))
        self.problem.strictly(known.algorithm, known.device, known.order)
        for v, start in enumerate(self.problem.state.times["start"].tolist()):
            self.model.add_hint(self.start[v], self.ticks(start))

    def solve(self, seconds: float, effort: float, floor_us: float) -> Proof:
        """Search for at most `seconds`, or an `effort` in CP-SAT's deterministic time; `floor_us` is
        a bound that is known."""
        self.model.add(self.makespan >= self.ticks(floor_us))
        self.model.minimize(self.makespan)
        solver, judge = self.solver(seconds, effort), Judge(self)
        status = solver.solve(self.model, judge)
        if status == cp_model.INFEASIBLE:
            return Proof(floor_us, None, impossible=True)
        proved = solver.best_objective_bound / self.scale
        bound = max(floor_us, proved if self.whole else proved * (1.0 - ROUNDING))
        return Proof(bound, judge.best)


class Judge(cp_model.CpSolverSolutionCallback):
    """Judges whatever the solver finds on its way; `best` is the best of it."""

    def __init__(self, model: Exact) -> None:
        super().__init__()
        self.model = model
        self.best: Candidate | None = None

    def on_solution_callback(self) -> None:
        model = self.model
        device = np.array([[self.value(x) for x in row].index(1) for row in model.at], np.int64)
        starts = np.array([self.value(s) for s in model.start])
        ends = np.array([self.value(e) for e in model.end])
        order = np.lexsort((np.arange(len(starts)), ends, starts))
        found = model.problem.strictly("exact", device, order)
        if self.best is None or found.worth < self.best.worth:
            self.best = found


def ticks_per_us(times: Floats, limit_us: float) -> tuple[float, bool]:
    """(ticks that make all times whole, True), if few do; else (as many as integers allow, False)."""
    for scale in STEPS:
        if np.allclose(times * scale, np.round(times * scale), rtol=1e-12, atol=1e-9):
            return scale, True
    return TICKS / max(limit_us, 1e-9), False
