"""Placement and schedule of small graphs by CP-SAT: a lower bound and often an optimality proof.

Optional intervals model the device of an operator; transfers take time, and occupy ports under the
duplex models. Integers are rounded towards an easier problem (times down, memory up), so the bound
is valid; solutions are simulated like any other placement.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import numpy as np
from ortools.sat.python import cp_model

from ....cost_model.placement.arrays import Floats
from ....ir.plan.placement import LinkModel
from ...solvers.constraint_program import only_if
from ..bounds import quickest_transfer_us
from ..packing import PackingModel
from ..problem import PlacementCandidate, PlacementProblem
from .demands import TensorSend, in_turn, lifetimes

TICKS = 2**30  # ticks in the known makespan
ROUNDING = 1e-9  # of a bound: what rounding to ticks may have added
MOST_SENDS = 100  # whose order at the ports is modelled; without it, transfers may overtake
STEPS = (1.0, 10.0, 100.0, 1000.0)  # ticks per us that may give whole numbers


class Proof(NamedTuple):
    """No placement is faster than `bound_us`; `candidate`: best placement met, if any.
    `impossible`: proven that none is as fast as the limit."""

    bound_us: float
    candidate: PlacementCandidate | None
    impossible: bool = False


class ExactModel(PackingModel):
    """Constraint model of a problem under `link`, which may be a relaxation of the problem's own
    link model. Searches for placements that end by `limit_us`, starting from a known one.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        link: LinkModel,
        start_candidate: PlacementCandidate,
        limit_us: float,
    ) -> None:
        super().__init__(problem)
        self.link: LinkModel = link
        self.spent_us = quickest_transfer_us(problem.work)
        times = np.concatenate([problem.work.duration_us.ravel(), self.spent_us])
        self.scale, self.exact_ticks = ticks_per_us(times[np.isfinite(times)], limit_us)
        self.horizon = int(np.ceil(limit_us * self.scale)) + 1
        self.start = [self.time(f"s{v}") for v in range(problem.operators)]
        self.end = [self.time(f"e{v}") for v in range(problem.operators)]
        self.lanes: list[list[cp_model.IntervalVar]] = [[] for _ in self.devices]
        self.out: list[list[cp_model.IntervalVar]] = [[] for _ in self.devices]
        self.inward: list[list[cp_model.IntervalVar]] = [[] for _ in self.devices]
        if link == "half-duplex":
            self.inward = self.out
        self.sends: dict[tuple[int, int], TensorSend] = {}
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
        self.hint(start_candidate)

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
        """Constrain pairs of devices whose link is slower than the fastest one."""
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
                only_if(after, *away)

    def sent(self, e: int, spent: int) -> None:
        """Constrain the target of an edge to start after the transfer to its device."""
        edge = self.work.edges[e]
        source, target = int(edge["source"]), int(edge["target"])
        for d in self.devices:
            send = self.send(int(edge["tensor"]), source, d, spent)
            after = self.model.add(self.start[target] >= send.begin + spent)
            only_if(after, self.at[target][d], self.at[source][d].negated())

    def send(self, tensor: int, source: int, d: int, spent: int) -> TensorSend:
        """Transfer of a tensor to a device that lacks it; occupies its ports."""
        if (tensor, d) in self.sends:
            return self.sends[tensor, d]
        copy, begin = self.copies[tensor, d], self.time("")
        send = self.sends[tensor, d] = TensorSend(source, d, begin, spent, copy)
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

    def port(self, send: TensorSend, used: cp_model.IntVar) -> cp_model.IntervalVar:
        begin, spent = send.begin, send.spent
        return self.model.new_optional_interval_var(begin, spent, begin + spent, used, "")

    def hint(self, start_candidate: PlacementCandidate) -> None:
        """Hint a known placement, its devices renumbered to respect the symmetry breaking."""
        name = {d: d for d in self.devices}
        if self.problem.uniform:
            seen = list(dict.fromkeys(start_candidate.device.tolist()))
            name = dict(
                zip([*seen, *(d for d in self.devices if d not in seen)], self.devices, strict=True)
            )
        hinted: set[int] = set()
        for v, row in enumerate(self.at):
            for d, here in enumerate(row):
                if here.index not in hinted:
                    hinted.add(here.index)
                    self.model.add_hint(here, int(name[int(start_candidate.device[v])] == d))
        self.problem.evaluate_order(
            start_candidate.algorithm, start_candidate.device, start_candidate.order
        )
        for v, start in enumerate(self.problem.state.times["start"].tolist()):
            self.model.add_hint(self.start[v], self.ticks(start))

    def solve(self, seconds: float, effort: float, floor_us: float) -> Proof:
        """Search for at most `seconds`, or `effort` of CP-SAT's deterministic time; `floor_us`:
        known lower bound.
        """
        self.model.add(self.makespan >= self.ticks(floor_us))
        self.model.minimize(self.makespan)
        solver, judge = self.solver(seconds, effort), BestCandidate(self)
        status = solver.solve(self.model, judge)
        if status == cp_model.INFEASIBLE:
            return Proof(floor_us, None, impossible=True)
        proved = solver.best_objective_bound / self.scale
        bound = max(floor_us, proved if self.exact_ticks else proved * (1.0 - ROUNDING))
        return Proof(bound, judge.best)


class BestCandidate(cp_model.CpSolverSolutionCallback):
    """Solver callback that simulates every solution and keeps the best in `best`."""

    def __init__(self, model: ExactModel) -> None:
        super().__init__()
        self.model = model
        self.best: PlacementCandidate | None = None

    def on_solution_callback(self) -> None:
        model = self.model
        device = np.array([[self.value(x) for x in row].index(1) for row in model.at], np.int64)
        starts = np.array([self.value(s) for s in model.start])
        ends = np.array([self.value(e) for e in model.end])
        order = np.lexsort((np.arange(len(starts)), ends, starts))
        candidate = model.problem.evaluate_order("exact", device, order)
        if self.best is None or candidate.sort_key < self.best.sort_key:
            self.best = candidate


def ticks_per_us(times: Floats, limit_us: float) -> tuple[float, bool]:
    """(ticks per us that make all times integers, True) if a small number does; else (the largest
    resolution, False)."""
    for scale in STEPS:
        if np.allclose(times * scale, np.round(times * scale), rtol=1e-12, atol=1e-9):
            return scale, True
    return TICKS / max(limit_us, 1e-9), False
