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

from ...cost_model.placement import Floats
from ...ir.placement import LinkModel
from .bounds import quickest_transfer_us
from .packing import Packing
from .problem import Candidate, Problem
from .ranked import places

TICKS = 2**30  # of time in the makespan known
ROUNDING = 1e-9  # of a bound: what rounding to ticks may have added
STEPS = (1.0, 10.0, 100.0, 1000.0)  # ticks per us that may give whole numbers


class Proof(NamedTuple):
    """No placement is faster than `bound_us`; `found` may be better than what was known or not."""

    bound_us: float
    found: Candidate | None


class Exact(Packing):
    """The constraint model of a problem with the ports of a link model, which may be a relaxation of
    the problem's own. It looks for what is no slower than a known placement that fits."""

    def __init__(self, problem: Problem, link: LinkModel, known: Candidate) -> None:
        super().__init__(problem)
        self.link, limit_us = link, known.makespan_us
        self.spent_us = quickest_transfer_us(problem.work)
        times = np.concatenate([problem.work.duration_us.ravel(), self.spent_us])
        self.scale = ticks_per_us(times[np.isfinite(times)], limit_us)
        self.horizon = int(np.ceil(limit_us * self.scale)) + 1
        self.start = [self.time(f"s{v}") for v in range(problem.operators)]
        self.end = [self.time(f"e{v}") for v in range(problem.operators)]
        self.lanes: list[list[cp_model.IntervalVar]] = [[] for _ in self.devices]
        self.out: list[list[cp_model.IntervalVar]] = [[] for _ in self.devices]
        self.inward = self.out if link == "half-duplex" else [[] for _ in self.devices]
        self.operators()
        self.transfers()
        for together in (*self.lanes, *self.out, *self.inward):
            if len(together) > 1:
                self.model.add_no_overlap(together)
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
        ports: dict[tuple[int, int], cp_model.IntVar] = {}
        for e, edge in enumerate(self.work.edges):
            source, target = int(edge["source"]), int(edge["target"])
            spent = self.ticks(self.spent_us[e]) if len(self.devices) > 1 else 0
            self.model.add(self.start[target] >= self.end[source])
            if len(self.devices) == 1:
                continue
            apart = self.model.new_bool_var("")
            for d in self.devices:
                self.model.add(self.at[target][d] - self.at[source][d] <= apart)
                self.model.add(self.at[target][d] + self.at[source][d] + apart <= 2)
            if spent:
                self.model.add(self.start[target] >= self.end[source] + spent * apart)
                self.far(e, spent)
                if self.link != "parallel":
                    self.queue(ports, e, spent)

    def far(self, e: int, least: int) -> None:
        """Pairs of devices whose link is slower than the quickest."""
        edge, links = self.work.edges[e], self.work.links
        source, target = int(edge["source"]), int(edge["target"])
        if edge["fixed_us"] >= 0:
            return
        for one, other in permutations(self.devices, 2):
            spent = self.ticks(links[0, one, other] + links[1, one, other] * self.size[edge["tensor"]])
            if spent > least:
                away = [self.at[source][one], self.at[target][other]]
                after = self.model.add(self.start[target] >= self.end[source] + spent)
                after.only_enforce_if(away)

    def queue(self, ports: dict[tuple[int, int], cp_model.IntVar], e: int, spent: int) -> None:
        """The tensor of an edge takes its ports on the way to each device that lacks it."""
        edge = self.work.edges[e]
        source, target, tensor = int(edge["source"]), int(edge["target"]), int(edge["tensor"])
        for d in self.devices:
            copy = self.copies[tensor, d]
            if (tensor, d) not in ports:
                ports[tensor, d] = self.time("")
                self.model.add(ports[tensor, d] >= self.end[source])
                port, size = ports[tensor, d], spent
                self.inward[d].append(
                    self.model.new_optional_interval_var(port, size, port + size, copy, "")
                )
                for home in self.devices:
                    if home != d:
                        sent = self.model.new_bool_var("")
                        self.model.add_bool_or([copy.Not(), self.at[source][home].Not(), sent])
                        self.out[home].append(
                            self.model.new_optional_interval_var(port, size, port + size, sent, "")
                        )
            away = [self.at[target][d], self.at[source][d].Not()]
            self.model.add(self.start[target] >= ports[tensor, d] + spent).only_enforce_if(away)

    def hint(self, known: Candidate) -> None:
        """Start from a known placement, its devices numbered as the model numbers equal ones."""
        name = {d: d for d in self.devices}
        if self.problem.alike:
            seen = list(dict.fromkeys(known.device.tolist()))
            name = dict(zip([*seen, *(d for d in self.devices if d not in seen)], self.devices,
                            strict=True))  # fmt: skip
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
        solver = self.solver(seconds, effort)
        status = solver.solve(self.model)
        bound = max(floor_us, solver.best_objective_bound / self.scale * (1.0 - ROUNDING))
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Proof(bound, None)
        device = self.devices_of(solver)
        starts = np.array([solver.value(s) for s in self.start])
        ends = np.array([solver.value(e) for e in self.end])
        order = np.lexsort((places(np.arange(len(starts))), ends, starts))
        return Proof(bound, self.problem.strictly("exact", device, order))


def ticks_per_us(times: Floats, limit_us: float) -> float:
    """Ticks that make all times whole, if few do; else as many as the integers allow."""
    for scale in STEPS:
        if np.allclose(times * scale, np.round(times * scale), rtol=0.0, atol=1e-7):
            return scale
    return TICKS / max(limit_us, 1e-9)
