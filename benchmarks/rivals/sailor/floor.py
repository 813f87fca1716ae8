"""A floor of the step time: GPU-seconds that the layers need, spread over the fleet without loss."""

from __future__ import annotations

from math import inf

from plait.benchmarks.rivals.sailor.judge import Fleet
from plait.benchmarks.rivals.sailor.profile import SailorProfile
from plait.planner.solvers.linear_program import LinearProgram, total


def floor_seconds(profile: SailorProfile, fleet: Fleet) -> float:
    """Least seconds in which every sample passes every layer once on the GPUs of the fleet.

    A replica is busy for at most the step, so no plan is faster. Communication, memory and the
    order of layers are left out. Infinite where no GPU was measured.
    """
    gpus: dict[str, int] = {}
    for zone in fleet.values():
        for gpu, count in zone.items():
            if count:
                gpus[gpu] = gpus.get(gpu, 0) + count
    measured = {key.gpu for key in profile.seconds}
    gpus = {gpu: count for gpu, count in gpus.items() if gpu in measured}
    if not gpus:
        return inf
    cost = {gpu: least_gpu_seconds(profile, gpu) for gpu in gpus}
    unit = profile.samples * min(sum(row) for row in cost.values()) / sum(gpus.values())
    program = LinearProgram()
    step = program.real()
    shares = {gpu: [program.real() for _ in range(profile.layers)] for gpu in gpus}
    for layer in range(profile.layers):
        program.require(total(shares[gpu][layer] for gpu in gpus) == 1)
    for gpu, count in gpus.items():
        busy = total(
            share * (profile.samples * seconds / unit / count)
            for share, seconds in zip(shares[gpu], cost[gpu], strict=True)
        )
        program.require(busy <= step)
    program.minimise(step)
    return program.solve().bound * unit


def least_gpu_seconds(profile: SailorProfile, gpu: str) -> list[float]:
    """GPU-seconds of every layer for one sample, at its best micro-batch and degree."""
    rates = [
        table.busy * key.degree / key.micro_batch
        for key, table in profile.seconds.items()
        if key.gpu == gpu
    ]
    return [float(min(row[layer] for row in rates)) for layer in range(profile.layers)]
