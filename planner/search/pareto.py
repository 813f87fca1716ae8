"""The front: plans of which no other is faster in less memory with a smaller batch."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from ...ir.devices.cluster import Cluster
from ...ir.lowering.rescale import rescale
from ...ir.model import Model
from ...ir.plan.plan import Plan
from ..candidate import Candidate
from ..options import PlanOptions
from .driver import Space
from .to_plan import assemble

STEP = 0.03  # of memory: what less a slower plan has to need to be shown
BUDGETS = 6  # between the least and the most memory that candidates of a batch need


class Point(NamedTuple):
    """A candidate of one space, by samples per second, bytes of the fullest device, and samples per
    step."""

    space: Space
    candidate: Candidate

    @property
    def face(self) -> tuple[float, int, int]:
        batch = self.space.evaluator.global_batch
        return batch / self.candidate.step_seconds, self.candidate.peak_bytes, batch

    def covers(self, other: Point) -> bool:
        """Whether it is no slower, no larger a batch, and needs no more memory or hardly any more."""
        (speed, peak, batch), (its_speed, its_peak, its_batch) = self.face, other.face
        return speed >= its_speed and peak * (1 - STEP) <= its_peak and batch <= its_batch


def front(
    model: Model, cluster: Cluster, options: PlanOptions, batches: Sequence[int] = ()
) -> list[Plan]:
    """Plans of the front, the fastest first, for the model's batch and those given; also plans that
    need more memory than the budget, up to what a device has.

    What lies between candidates of one strategy is filled by blends under budgets between theirs.
    """
    points: list[Point] = []
    for batch in dict.fromkeys((model.batch, *batches)):
        space = Space.of(rescale(model, batch) if batch != model.batch else model, cluster, options)
        space.slow = inf  # slower ones may need less memory
        space.run()
        for budget in budgets(space) if batch == model.batch else ():
            space.again(memory_bytes=budget).blend(space.found)
        points += [Point(space, c) for c in space.found if c.peak_bytes <= most(space)]
    best = sorted(undominated(points), key=lambda p: (-p.face[0], p.face[1], p.candidate.word))
    return [assemble(point.space, point.candidate) for point in best]


def most(space: Space) -> int:
    """Bytes that a plan of the front may need."""
    return max(space.budget, space.cluster.device.memory_bytes)


def budgets(space: Space) -> list[int]:
    """Evenly spaced, between what candidates on the front need."""
    useful = undominated([Point(space, c) for c in space.found if c.peak_bytes <= most(space)])
    peaks = sorted(p.candidate.peak_bytes for p in useful)
    if not peaks:
        return []
    return [peaks[0] + (peaks[-1] - peaks[0]) * n // BUDGETS for n in range(1, BUDGETS)]


def undominated(points: Sequence[Point]) -> list[Point]:
    """Points that no faster one covers."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.face[0], *p.face[1:])):
        if not any(other.covers(point) for other in found):
            found.append(point)
    return found
