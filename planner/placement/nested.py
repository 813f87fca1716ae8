"""Nested search: the best placement on the first 2, 4, 8 ... devices starts the search on more.

A search on the first devices is identical, step for step, whichever devices follow them:

    devices   2      3, 4     5 to 8      9 to 16
    effort   1/2   1/2 + 1/4  … + 1/8      … + 1/16     of what is planned

So more devices never give a slower placement than the first 2, 4, 8 ... of them, and all searches
together plan the effort of one. A number of devices is skipped if a list schedule on more devices
beats its lower bound. Only a time limit that cuts a search short can break this.
"""

from __future__ import annotations

import numpy as np

from ...cost_model.placement.arrays import GraphArrays
from ..question.deadline import Deadline, Watch, without_bound
from .options import PlacementOptions
from .portfolio import PlacementSearch
from .problem import PlacementProblem


def nested(
    problem: PlacementProblem, options: PlacementOptions, deadline: Deadline, watch: Watch
) -> tuple[PlacementSearch, bool]:
    """(finished search on all devices, whether the time limit cut any search short).

    Of fewer devices `watch` is told no bound: more may be faster.
    """
    rungs = rungs_of(problem.devices)
    search = _started(problem, rungs, 0, options, deadline)
    effort, timed_out = 0.5 * options.planned_seconds, False
    for number in range(1, len(rungs)):
        larger = _started(problem, rungs, number, options, deadline)
        if not _beats(larger, search):
            search.watch = without_bound(watch)
            search.run(effort)
            effort *= 0.5
            if search.fits:
                best = search.best
                candidate = larger.problem.evaluate_order(best.algorithm, best.device, best.order)
                larger.members.append(candidate)
        timed_out |= search.timed_out
        search = larger
    search.watch = watch
    search.run(effort)
    return search, timed_out or search.timed_out


def rungs_of(devices: int) -> list[int]:
    """Numbers of devices to search on in turn: powers of two, then all."""
    below = [2**number for number in range(1, devices.bit_length()) if 2**number < devices]
    return [*below, devices]


def first_devices(problem: PlacementProblem, devices: int) -> PlacementProblem:
    """The problem restricted to its first `devices` devices."""
    work = problem.work
    restricted: GraphArrays = work._replace(
        duration_us=np.ascontiguousarray(work.duration_us[:, :devices]),
        links=np.ascontiguousarray(work.links[:, :devices, :devices]),
        capacity=work.capacity[:devices].copy(),
    )
    return PlacementProblem(restricted, problem.link, problem.rule)


def _started(
    problem: PlacementProblem,
    rungs: list[int],
    number: int,
    options: PlacementOptions,
    deadline: Deadline,
) -> PlacementSearch:
    """Start the search of one rung with the constructive algorithms; its time limit is proportional
    to the effort of this and all earlier rungs.
    """
    part = first_devices(problem, rungs[number])
    done = (1.0 - 0.5 ** (number + 1)) / (1.0 - 0.5 ** len(rungs))
    seconds = None if options.seconds is None else options.seconds * done
    search = PlacementSearch(part, options, deadline.limited(seconds))
    search.construct()
    return search


def _beats(larger: PlacementSearch, fewer: PlacementSearch) -> bool:
    return larger.fits and larger.best.makespan_us <= fewer.bound_us
