"""Fewer devices first: what was found on the first 2, 4, 8 … devices is where the search on all starts.

A search on some devices is the same, step for step, whichever devices come after them:

    devices   2      3, 4     5 to 8      9 to 16
    effort   1/2   1/2 + 1/4  … + 1/8      … + 1/16     of what is planned

So more devices are never slower than the first 2, 4, 8 … of them, and all searches together plan no
more than one may. No effort goes to devices of which the lower bound is beaten by a list schedule on
more. Only a time limit that cuts a search short can break this.
"""

from __future__ import annotations

import numpy as np

from ...cost_model.placement.arrays import Work
from .options import PlacementOptions
from .portfolio import Search
from .problem import Problem


def nested(problem: Problem, options: PlacementOptions, began: float) -> tuple[Search, bool]:
    """(the search on all devices, done; whether the time limit cut one of the searches short)."""
    rungs = rungs_of(problem.devices)
    search = _begun(problem, rungs, 0, options, began)
    effort, cut_short = 0.5 * options.planned_seconds, False
    for number in range(1, len(rungs)):
        larger = _begun(problem, rungs, number, options, began)
        if not _beats(larger, search):
            search.run(effort)
            effort *= 0.5
            if search.fits:
                best = search.best
                known = larger.problem.strictly(best.algorithm, best.device, best.order)
                larger.members.append(known)
        cut_short |= search.cut_short
        search = larger
    search.run(effort)
    return search, cut_short or search.cut_short


def rungs_of(devices: int) -> list[int]:
    """Numbers of devices to search on, one after the other: powers of two, then all."""
    below = [2**number for number in range(1, devices.bit_length()) if 2**number < devices]
    return [*below, devices]


def first_devices(problem: Problem, devices: int) -> Problem:
    """The problem on its first devices alone."""
    work = problem.work
    few: Work = work._replace(
        duration_us=np.ascontiguousarray(work.duration_us[:, :devices]),
        links=np.ascontiguousarray(work.links[:, :devices, :devices]),
        capacity=work.capacity[:devices].copy(),
    )
    return Problem(few, problem.link, problem.rule)


def _begun(
    problem: Problem, rungs: list[int], number: int, options: PlacementOptions, began: float
) -> Search:
    """The search of one rung with what can be constructed; its part of the time is that of its
    effort and of all before it."""
    part = first_devices(problem, rungs[number])
    done = (1.0 - 0.5 ** (number + 1)) / (1.0 - 0.5 ** len(rungs))
    seconds = None if options.seconds is None else options.seconds * done
    search = Search(part, options, began, seconds)
    search.construct()
    return search


def _beats(larger: Search, fewer: Search) -> bool:
    return larger.fits and larger.best.makespan_us <= fewer.bound_us
