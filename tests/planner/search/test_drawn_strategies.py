"""The search finds what a person can pin: no strategy that can be pinned is faster than the plan."""

import random

import pytest

from plait.cost_model.hardware import load_cluster
from plait.ir.errors import PlaitError
from plait.ir.lowering.rescale import rescale
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all

ROLES = ("pp", "dp", "zero1", "zero2", "zero3", "ep", "cp", "sp", "tp")
DRAWS = 60
CASES = (("llama", "8xh100", 64), ("mixtral", "4x8xh100", 64), ("t5", "2x8xa100-80", 32))


def drawn(devices: int, rng: random.Random) -> str:
    """A strategy of all devices: up to four axes of roles in the order of strategies."""
    sizes = list[int]()
    left = devices
    while left > 1:
        size = rng.choice([n for n in (2, 4, 8, left) if left % n == 0])
        sizes.append(size)
        left //= size
    roles = sorted(rng.sample(ROLES, len(sizes)), key=ROLES.index)
    text = ",".join(f"{role}={size}" for role, size in zip(roles, sizes, strict=True))
    return text + ",sp" if "tp" in roles and "sp" not in roles and rng.random() < 0.4 else text


def faster(name, model, cluster, count: int, seed: int) -> list[str]:
    """The strategies that are predicted faster than the plan; some are refused, with the reason."""
    cluster, rng = load_cluster(cluster), random.Random(seed)
    options = PlanOptions(simpler_within=0.0)
    best = plan(model, cluster, options).prediction.step_seconds
    better = list[str]()
    for text in dict.fromkeys(drawn(cluster.devices, rng) for _ in range(count)):
        try:
            pinned = plan(model, cluster, PlanOptions(pins=pin_all(text), simpler_within=0.0))
        except PlaitError:
            continue  # said why
        if pinned.prediction.step_seconds < best * (1 - 1e-9):
            better.append(f"{name} {text}: {pinned.prediction.step_seconds} against {best}")
    return better


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_no_pinned_strategy_is_faster_than_the_plan(case, traced):
    name, cluster, batch = case
    assert not faster(name, rescale(traced(name), batch), cluster, DRAWS, 0)
