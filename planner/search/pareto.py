"""The Pareto front: plans that no other beats in throughput, memory and batch size at once."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from ...ir.devices.cluster import Cluster
from ...ir.lowering.rescale import rescale
from ...ir.model.model import Model
from ...ir.plan.plan import Plan
from ..question.candidate import Candidate
from ..question.deadline import Watch, unwatched
from ..question.options import PlanOptions
from ..solvers.pareto import pareto
from .driver import SearchSpace
from .to_plan import assemble

STEP = 0.03  # relative memory that a slower plan must save to be shown
MEMORY_LIMITS = 6  # between the least and the most memory of a batch's candidates


class PlanObjectives(NamedTuple):
    """Samples per second (negated: smaller is better), peak bytes, and samples per step."""

    negative_speed: float
    peak_bytes: int
    global_batch: int


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether `one` is as fast with as small a batch, and needs hardly more memory (`STEP`)."""
    (speed, peak, batch), (other_speed, other_peak, other_batch) = one, other
    return speed <= other_speed and peak * (1 - STEP) <= other_peak and batch <= other_batch


class ParetoPoint(NamedTuple):
    """A candidate of one space, as a point of three objectives."""

    space: SearchSpace
    candidate: Candidate

    @property
    def objectives(self) -> PlanObjectives:
        candidate, batch = self.candidate, self.space.pricer.global_batch
        return PlanObjectives(-batch / candidate.step_seconds, candidate.peak_bytes, batch)


def pareto_front(
    model: Model,
    cluster: Cluster,
    options: PlanOptions,
    batches: Sequence[int] = (),
    watch: Watch = unwatched,
) -> list[Plan]:
    """Plans of the Pareto front, fastest first, for the model's batch and `batches`.

    Plans may need more memory than the user's limit, up to what a device has. Searches under
    intermediate memory limits fill the gaps. `watch` is told seconds of the fastest so far, for the
    model's batch.
    """
    points: list[ParetoPoint] = []
    for batch in dict.fromkeys((model.batch, *batches)):
        space = SearchSpace.create(
            rescale(model, batch) if batch != model.batch else model, cluster, options
        )
        space.watch = watch if batch == model.batch else unwatched
        space.slow_factor = inf  # slower ones may need less memory
        space.run()
        for memory_limit in memory_limits(space) if batch == model.batch else ():
            space.candidates += space.with_options(memory_bytes=memory_limit).run()
        points += [
            ParetoPoint(space, c) for c in space.candidates if c.peak_bytes <= most_bytes(space)
        ]
    front = sorted(
        undominated(points), key=lambda p: (*p.objectives[:2], p.candidate.strategy_text)
    )
    return [assemble(point.space, point.candidate) for point in front]


def most_bytes(space: SearchSpace) -> int:
    """Bytes that a plan of the front may need."""
    return max(space.memory_limit_bytes, space.cluster.device.memory_bytes)


def memory_limits(space: SearchSpace) -> list[int]:
    """Evenly spaced limits between the least and the most memory on the front."""
    front = undominated(
        [ParetoPoint(space, c) for c in space.candidates if c.peak_bytes <= most_bytes(space)]
    )
    peaks = sorted(p.candidate.peak_bytes for p in front)
    if not peaks:
        return []
    return [peaks[0] + (peaks[-1] - peaks[0]) * n // MEMORY_LIMITS for n in range(1, MEMORY_LIMITS)]


def undominated(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """Points that no faster one beats."""
    return pareto(points, lambda point: point.objectives, beats)
