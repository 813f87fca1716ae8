"""Aceso's costs and our search on them, on small random models."""

from itertools import combinations, pairwise, product
from math import inf

import numpy as np
import pytest

from plait.benchmarks.rivals.aceso.boundaries import SplitTimes, alternated, lowered
from plait.benchmarks.rivals.aceso.judge import AcesoJudge
from plait.benchmarks.rivals.aceso.plan import AcesoPlan, AcesoStage, Degrees
from plait.benchmarks.rivals.aceso.profile import GPT, AcesoModel, Operators, Setting, Variant
from plait.benchmarks.rivals.aceso.search import search
from plait.benchmarks.rivals.aceso.stage_tables import choices

LAYER = ("enc-1st-layernorm", "enc-attention-qkv", "enc-attention-dropout", "enc-MLP-gelu")
SIZES = (1, 2)


def random_model(seed: int, layers: int) -> AcesoModel:
    """Layers of four operators, twice as dear to keep as to recompute; tensor degrees cost more."""
    random = np.random.default_rng(seed)
    names = ("encoder-embedding", *LAYER * layers)
    base = {name: random.uniform(1, 4, 8) for name in dict.fromkeys(names)}
    variants = {}
    for samples, tensor in product(SIZES, (1, 2)):
        rows = np.array([base[name] for name in names])
        scale = np.array(
            [samples / tensor * 1.2] * 2 + [samples] * 2 + [1 / tensor] + [samples] * 3
        )
        columns = rows * np.where(np.arange(8) < 2, 100.0, 1.0) * scale
        for algorithm in (0, 1):
            variants[Variant(samples, tensor, algorithm)] = Operators(*columns.T)
    links = tuple(float(n) for n in range(10, 21))
    return AcesoModel(GPT, names, variants, {}, links, links)


def setting(limit_mb: float, gpus: int = 2) -> Setting:
    return Setting("s", "p", 1, 1, gpus, 16, SIZES, limit_mb, gpus)


def uniform_plans(judge: AcesoJudge):
    """Every plan with one choice of degrees by stage, and every set of recompute flags."""
    operators = len(judge.model.names)
    for stages, b in product((1, 2), SIZES):
        for boundaries in combinations(range(1, operators), stages - 1):
            bounds = (0, *boundaries, operators)
            sizes = [last - first for first, last in pairwise(bounds)]
            each = [list(choices(3 - stages))] * stages
            for degrees in product(*each):
                for flags in product((False, True), repeat=operators):
                    built = [
                        AcesoStage((d,) * n, flags[first : first + n])
                        for d, n, first in zip(degrees, sizes, bounds, strict=False)
                    ]
                    plan = AcesoPlan(b, tuple(built))
                    if not judge.faults(plan):
                        yield plan


@pytest.mark.parametrize(("seed", "limit_mb"), [(0, 500.0), (1, 220.0), (2, 165.0), (3, 20.0)])
def test_search_is_as_good_as_trying_all_uniform_plans(seed, limit_mb):
    judge = AcesoJudge(random_model(seed, 1), setting(limit_mb))
    best = min(
        (judge.step_seconds(p) for p in uniform_plans(judge) if not judge.too_large(p)), default=inf
    )
    answer = search(judge.model, judge.setting)
    assert (answer is None) == (best == inf)
    if answer is not None:
        assert answer.step_seconds <= best * 1.01
        assert answer.floor_seconds <= best


@pytest.mark.parametrize("seed", range(4))
def test_plans_fit_and_take_what_the_judge_says(seed):
    model = random_model(seed, 6)
    for limit in (2000.0, 700.0, 450.0, 320.0):
        judge = AcesoJudge(model, setting(limit, 4))
        answer = search(model, judge.setting)
        if answer is not None:
            assert not judge.faults(answer.plan)
            assert not judge.too_large(answer.plan)
            assert answer.step_seconds == pytest.approx(judge.step_seconds(answer.plan), rel=1e-12)
            assert answer.floor_seconds <= answer.step_seconds


def test_a_run_ends_before_the_next_layer():
    """Two layers, all recomputed: what one layer keeps is held at once, what both keep is saved."""
    judge = AcesoJudge(random_model(0, 2), setting(1e9, 1))
    degrees = (Degrees(1, 1),) * len(judge.model.names)
    first, again = (
        judge.stage_mb(AcesoPlan(1, (AcesoStage(degrees, (flag,) * len(degrees)),)))[0]
        for flag in (False, True)
    )
    values = judge.model.variants[Variant(1, 1, 0)].activations_mb * np.array(
        [1.5 if name == "enc-attention-dropout" else 1.0 for name in judge.model.names]
    )
    saved = values[1:4].sum() * 2  # the last of a layer, and the embedding before the first, stay
    peak = max(values[0], values[1:5].sum())
    assert again - first == pytest.approx(peak - saved)


class AdditiveTimes:
    """Stages that take the sum of their operators."""

    def __init__(self, micros: np.ndarray) -> None:
        self.ends = np.concatenate([[0.0], np.cumsum(micros)])

    def estimate(self, first: int, last: int, place: None) -> float:
        return float(self.ends[last] - self.ends[first])


@pytest.mark.parametrize("seed", range(6))
def test_moved_boundaries_are_nearly_the_best_of_all(seed):
    random, stages, operators = np.random.default_rng(seed), 4, 24
    times = SplitTimes([AdditiveTimes(random.uniform(1, 3, operators))] * stages, [None] * stages)
    start = [0, 2, 4, 6, operators]
    moved = lowered(times, alternated(times, start))
    best = min(
        times.slowest((0, *inner, operators))
        for inner in combinations(range(1, operators), stages - 1)
    )
    assert all(first < last for first, last in pairwise(moved))
    assert (moved[0], moved[-1]) == (0, operators)
    assert times.slowest(moved) <= 1.05 * best < times.slowest(start)
