"""The Pareto front: plans that no other beats in throughput, memory and batch size at once."""

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
from .driver import SearchSpace
from .to_plan import assemble

STEP = 0.03  # relative memory that a slower plan must save to be shown
MEMORY_LIMITS = 6  # between the least and the most memory of a batch's candidates


class ParetoPoint(NamedTuple):
    """A candidate of one space, as a point of three objectives."""

    space: SearchSpace
    candidate: Candidate

    @property
    def objectives(self) -> tuple[float, int, int]:
        """Samples per second, bytes of the fullest device, samples per step."""
        batch = self.space.pricer.global_batch
        return batch / self.candidate.step_seconds, self.candidate.peak_bytes, batch

    def dominates(self, other: ParetoPoint) -> bool:
        """Whether it is as fast with as small a batch, and needs hardly more memory (`STEP`)."""
        (speed, peak, batch), (other_speed, other_peak, other_batch) = (
            self.objectives,
            other.objectives,
        )
        return speed >= other_speed and peak * (1 - STEP) <= other_peak and batch <= other_batch


def pareto_front(
    model: Model, cluster: Cluster, options: PlanOptions, batches: Sequence[int] = ()
) -> list[Plan]:
    """Plans of the Pareto front, fastest first, for the model's batch and `batches`.

    Plans may need more memory than the user's limit, up to what a device has. Layer-wise mixes
    under intermediate memory limits fill the gaps between candidates of one strategy.
    """
    points: list[ParetoPoint] = []
    for batch in dict.fromkeys((model.batch, *batches)):
        space = SearchSpace.create(
            rescale(model, batch) if batch != model.batch else model, cluster, options
        )
        space.slow_factor = inf  # slower ones may need less memory
        space.run()
        for memory_limit in memory_limits(space) if batch == model.batch else ():
            space.with_options(memory_bytes=memory_limit).mix_layers(space.candidates)
        points += [
            ParetoPoint(space, c) for c in space.candidates if c.peak_bytes <= most_bytes(space)
        ]
    front = sorted(
        undominated(points),
        key=lambda p: (-p.objectives[0], p.objectives[1], p.candidate.strategy_text),
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
    """Points that no faster one dominates."""
    front: list[ParetoPoint] = []
    for point in sorted(points, key=lambda p: (-p.objectives[0], *p.objectives[1:])):
        if not any(other.dominates(point) for other in front):
            front.append(point)
    return front
