"""Sailor's costs and our search on them, in random small clouds."""

from itertools import combinations, pairwise, product
from math import inf
from random import Random

import msgspec
import numpy as np
import pytest

from plait.benchmarks.rivals.row import Row
from plait.benchmarks.rivals.sailor.comparison import row_of
from plait.benchmarks.rivals.sailor.floor import floor_seconds
from plait.benchmarks.rivals.sailor.judge import SailorJudge
from plait.benchmarks.rivals.sailor.plan import SailorPipeline, SailorPlan, TensorGroup
from plait.benchmarks.rivals.sailor.profile import (
    Cloud,
    End,
    LayerSeconds,
    LayerSizes,
    Link,
    Measured,
    SailorProfile,
)
from plait.benchmarks.rivals.sailor.question import Scenario
from plait.benchmarks.rivals.sailor.quick_prices import CompactPlan, QuickPrices, Run
from plait.benchmarks.rivals.sailor.search import search
from plait.benchmarks.rivals.sailor.zone_seeds import balanced

KINDS, ZONES, DEGREES, SIZES, LAYERS, SAMPLES = ("fast", "slow"), ("a", "b"), (1, 2), (1, 2), 4, 24


def random_problem(seed: int) -> tuple[SailorProfile, Cloud]:
    random = np.random.default_rng(seed)
    work = random.uniform(0.5, 2, LAYERS)
    seconds = {
        Measured(kind, b, t): LayerSeconds(
            work * b * slow / t * random.uniform(1.0, 1.3, LAYERS), random.uniform(0, 0.1, LAYERS)
        )
        for kind, slow in zip(KINDS, (1.0, random.uniform(1.5, 3)), strict=True)
        for b, t in product(SIZES, DEGREES)
    }
    weights = random.uniform(1e8, 4e8, LAYERS)
    sizes = {
        t: LayerSizes(weights / t, random.uniform(1e7, 5e7, LAYERS), random.uniform(1, 4) * 1e8 / t
                      * np.ones(LAYERS))
        for t in DEGREES
    }  # fmt: skip
    ends = [End(z, k, n) for z in ZONES for k in KINDS for n in DEGREES]
    links = {
        (one, other): Link(0.0, 0.05, random.uniform(1, 2) * min(one.gpus, other.gpus))
        for one, other in product(ends, ends)
    }
    dollars = {(a, b): 0.0 if a == b else 1e-11 for a, b in product(ZONES, ZONES)}
    memory = {"fast": random.uniform(12e9, 40e9), "slow": random.uniform(10e9, 30e9)}
    prices = {"fast": 1e-3, "slow": 5e-4}
    cloud = Cloud(memory, prices, dict.fromkeys(KINDS, 2), dollars, links)
    return SailorProfile(SAMPLES, seconds, sizes), cloud


def splits() -> list[tuple[int, ...]]:
    inner = range(1, LAYERS)
    return [
        (0, *inner_bounds, LAYERS) for n in range(LAYERS) for inner_bounds in combinations(inner, n)
    ]  # fmt: skip


def optimum(judge: SailorJudge, scenario: Scenario) -> float:
    """Least step of one pipeline in one zone with one degree by stage and kind, by trying all."""
    best, fleet = inf, scenario.fleet["a"]
    for bounds, replicas in product(splits(), range(1, 5)):
        stages = len(bounds) - 1
        served = [
            [TensorGroup("a", "fast", t)] * n + [TensorGroup("a", "slow", u)] * (replicas - n)
            for n in range(replicas + 1)
            for t, u in product(DEGREES, DEGREES)
            if (n or t == 1) and (n < replicas or u == 1)
        ]
        for stages_served in product(served, repeat=stages):
            used = [
                sum(g.degree for stage in stages_served for g in stage if g.gpu == kind)
                for kind in KINDS
            ]
            if any(n > fleet[kind] for n, kind in zip(used, KINDS, strict=True)):
                continue
            layers = tuple(b - a for a, b in pairwise(bounds))
            pipeline = SailorPipeline(layers, tuple(map(tuple, stages_served)))
            for b in SIZES:
                plan = SailorPlan(b, (pipeline,))
                if not judge.too_large(plan):
                    best = min(best, judge.step_seconds(plan))
    return best


def test_search_is_near_the_best_of_all_plans():
    ratios = []
    for seed in range(3):
        profile, cloud = random_problem(seed)
        judge = SailorJudge(profile, cloud)
        scenario = Scenario("s", "m", {"a": {"fast": 2, "slow": 3}}, "throughput")
        best = optimum(judge, scenario)
        answer = search(QuickPrices(profile, cloud), scenario)
        assert (answer is None) == (best == inf)
        if answer is not None:
            assert answer.price.seconds >= best * (1 - 1e-9)
            assert answer.floor_seconds <= best
            ratios.append(answer.price.seconds / best)
    assert len(ratios) >= 2
    assert max(ratios) < 1.05
    assert np.mean(ratios) < 1.01


@pytest.mark.parametrize("seed", range(12))
def test_plans_fit_keep_limits_and_cost_what_the_judge_says(seed):
    profile, cloud = random_problem(seed)
    random, judge = Random(seed), SailorJudge(profile, cloud)
    fleet = {z: {k: random.choice([0, 3, 8, 20]) for k in KINDS} for z in ZONES}
    fleet["a"]["fast"] += 2
    limits = random.choice([(None, None), (random.uniform(0.05, 0.4), None), (None, 0.05)])
    objective = "usd_per_step" if limits[1] else "throughput"
    scenario = Scenario("s", "m", fleet, objective, *limits)
    answer = search(QuickPrices(profile, cloud), scenario)
    if answer is None:
        return
    plan = answer.plan.plan()
    assert not judge.too_large(plan)
    assert not judge.over_fleet(plan, fleet)
    assert plan.equal_replicas
    assert answer.price.seconds == pytest.approx(judge.step_seconds(plan), rel=1e-12)
    assert answer.price.dollars == pytest.approx(judge.dollars(plan), rel=1e-12)
    assert answer.floor_seconds == pytest.approx(floor_seconds(profile, fleet))
    assert answer.floor_seconds <= answer.price.seconds
    row = row_of(judge, scenario, "plait", plan, None)
    assert msgspec.json.decode(msgspec.json.encode(row), type=Row) == row
    if limits[0] is not None:
        assert answer.price.dollars <= limits[0]
    if limits[1] is not None:
        assert answer.price.seconds * limits[1] <= 1


def test_table_prices_are_the_judges_on_random_plans():
    random = Random(0)
    for seed in range(40):
        profile, cloud = random_problem(seed % 5)
        bounds, lanes = random.choice(splits()), random.randint(1, 5)
        stages = []
        for _ in bounds[1:]:
            first = random.randint(1, lanes)
            runs = [Run(n, group(random)) for n in (first, lanes - first) if n]
            stages.append(tuple(runs))
        compact = CompactPlan(random.choice(SIZES), bounds, tuple(stages))
        price, judge = QuickPrices(profile, cloud).price(compact), SailorJudge(profile, cloud)
        assert price.seconds == pytest.approx(judge.step_seconds(compact.plan()), rel=1e-12)
        assert price.dollars == pytest.approx(judge.dollars(compact.plan()), rel=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_balanced_bounds_have_the_fastest_slowest_stage_of_all_that_fit(seed):
    prices = QuickPrices(*random_problem(seed))
    for key, stages in product(sorted(prices.usable), range(1, LAYERS + 2)):
        slowest = [
            max(prices.busy_rows[key][a][b] for a, b in spans)
            for bounds in splits()
            if len(spans := list(pairwise(bounds))) == stages
            and all(prices.fits(key, a, b, stages - 1 - i) for i, (a, b) in enumerate(spans))
        ]
        bounds = balanced(prices, key, stages)
        assert (bounds is None) == (not slowest)
        if bounds is not None:
            times = [prices.busy_rows[key][a][b] for a, b in pairwise(bounds)]
            assert len(times) == stages
            assert max(times) == pytest.approx(min(slowest), rel=2e-3)


def test_stages_that_fill_zones_keep_gradients_inside():
    # links between zones carry messages of a micro-batch, but gradients would take most of the step
    profile, cloud = random_problem(0)
    near, far = Link(0.0, 0.0, 10.0), Link(0.0, 0.0, 0.3)
    links = {(a, b): near if a.zone == b.zone else far for a, b in cloud.links}
    cloud = msgspec.structs.replace(cloud, links=links, memory_bytes={"fast": 80e9, "slow": 80e9})
    fleet = {zone: {"fast": 8, "slow": 0} for zone in ZONES}
    answer = search(QuickPrices(profile, cloud), Scenario("s", "m", fleet, "throughput"))
    assert answer is not None
    assert all(len({run.group.zone for run in stage}) == 1 for stage in answer.plan.stages)


def group(random: Random) -> TensorGroup:
    return TensorGroup(random.choice(ZONES), random.choice(KINDS), random.choice(DEGREES))


def test_a_plan_beyond_the_fleet_is_noticed():
    profile, cloud = random_problem(0)
    pipeline = SailorPipeline((LAYERS,), ((TensorGroup("a", "fast", 2),) * 2,))
    judge = SailorJudge(profile, cloud)
    assert judge.over_fleet(SailorPlan(1, (pipeline,)), {"a": {"fast": 3}})
    assert not judge.over_fleet(SailorPlan(1, (pipeline,)), {"a": {"fast": 4}})
