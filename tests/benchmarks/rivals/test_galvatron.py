"""Galvatron's formulas against what its own engine predicted, and its space against its winners."""

import json

import numpy as np
import pytest

from plait.benchmarks.rivals.galvatron_costs import GalvatronCosts
from plait.benchmarks.rivals.galvatron_pipeline import plan_bytes, plan_seconds
from plait.benchmarks.rivals.galvatron_profile import MIB, read_cluster, read_model
from plait.benchmarks.rivals.galvatron_search_space import (
    GIB,
    GalvatronPipeline,
    GalvatronProblems,
    budget_bytes,
    plain_budget_bytes,
    plan_of,
    tasks,
)
from plait.benchmarks.rivals.layers.check import faults
from plait.benchmarks.rivals.layers.exact_search import fastest
from plait.planner.interop.galvatron_file import GalvatronPlan, from_json, to_json
from plait.planner.interop.galvatron_strategy import GalvatronBatch, parse, strategies

# GB, batch, micro-batches, layers by stage, ranks of the buffer, ends, layers: seconds, MB by stage
# fmt: off
ENGINE = [
    (16, 64, 8, "32", 8, "1-4*-2f", "6x1-4*-2f-c 26x1-8*-1-c", 6.272865666677237, [16339]),
    (36, 64, 2, "32", 4, "1-4*-2f-sp", "23x1-2*-4f-c 8x1-2*-4-c 1x1-2*-4f",
     4.4677855792887335, [36843]),
    (36, 64, 32, "32", 4, "1-4*-2-sp", "11x1-4*-2-sp 21x1-4*-2", 6.472927614144536, [36505]),
    (36, 64, 8, "16 16", None, "2-1-4f", "3x2-1-4f-c 11x2-1-4-c 2x2-1-4 8x2-1-4f-c 7x2-1-4f "
     "1x2-1-4", 4.695483800261758, [36835, 36831]),
    (36, 64, 64, "8 8 8 8", None, "4-2*-1-sp", "12x4-2*-1-c-sp 4x4-2*-1-sp 2x4-2*-1-c-sp "
     "6x4-2*-1-sp 4x4-2*-1-c-sp 4x4-2*-1-sp", 6.396652918643452, [36169, 36772, 36646, 36825]),
    (20, 64, 64, "4 4 4 4 4 4 4 4", 1, "8-1-1", "7x8-1-1-c 1x8-1-1 2x8-1-1-c 2x8-1-1 2x8-1-1-c "
     "2x8-1-1 1x8-1-1-c 15x8-1-1", 5.306703675037885,
     [18127, 17766, 20052, 18958, 19797, 19668, 17612, 18291]),
    (80, 64, 1, "32", 1, "1-1-8f", "19x1-1-8f-c 4x1-1-8-c 9x1-1-8f", 3.906451348698627, [81854]),
]
# fmt: on

# GB, batch: samples per second of the engine's best plan, stock and with its objective made exact
WINNERS = [
    (16, 16, 9.991218519371877),
    (20, 16, 13.708719079851202),
    (36, 16, 14.732339301332983),
    (16, 64, 11.024080802669795),
    (20, 64, 12.779247019841868),
    (24, 64, 12.655840559217015),
    (36, 64, 15.275959688065988),
    (80, 64, 18.530788656830044),
]

# fmt: off
SHIPPED = {  # a plan that Galvatron ships for 36 GB
    "pp_deg": 1, "tp_sizes_enc": ",".join(["1"] * 32), "tp_consecutive_flags": ",".join(["1"] * 32),
    "dp_types_enc": ",".join(["1"] * 32), "use_sp": ",".join(["0"] * 32),
    "checkpoint": ",".join(["1"] * 20 + ["0"] * 12), "global_bsz": 16, "chunks": 1,
    "pp_division": "32", "pipeline_type": "pipedream_flush", "default_dp_type": "zero2", "vtp": 2,
    "vsp": 1, "embed_sdp": 1,
}
# fmt: on


@pytest.fixture
def costs(profiles):
    return GalvatronCosts(
        read_model(profiles, "llama", 32, 4096, 2048), read_cluster(profiles, 1, 8)
    )


def plan(samples, micro_batches, division, ends, runs):
    layers = tuple(
        parse(strategy)
        for count, strategy in (run.split("x") for run in runs.split())
        for _ in range(int(count))
    )
    return GalvatronPlan(
        GalvatronBatch(samples, micro_batches),
        layers,
        tuple(map(int, division.split())),
        parse(ends),
    )


def search(costs, budget, samples):
    space, made = list(tasks(8, samples, 32)), GalvatronProblems(costs, budget)
    problems = [made.problem(task) for task in space]
    best = fastest(problems, GalvatronPipeline())
    if best is not None:
        assert faults(problems[best.number], best.solution, GalvatronPipeline()) == []
    return best and (
        best.solution,
        plan_of(space[best.number], problems[best.number], best.solution),
    )


@pytest.mark.parametrize("row", ENGINE, ids=lambda row: f"{row[0]}GB-{row[2]}-{row[5]}")
def test_time_and_memory_are_the_engines(costs, row):
    gib, samples, micro_batches, division, ranks, ends, runs, seconds, memory = row
    made = plan(samples, micro_batches, division, ends, runs)
    assert plan_seconds(made, costs) == pytest.approx(seconds, rel=1e-6)
    cache = gib * GIB - plain_budget_bytes(gib * GIB)
    assert [(size + cache) // MIB for size in plan_bytes(made, costs, ranks)] == memory


@pytest.mark.parametrize(("gib", "samples", "throughput"), WINNERS)
def test_the_search_is_at_least_as_good_as_the_engines(costs, gib, samples, throughput):
    solution, made = search(costs, plain_budget_bytes(gib * GIB), samples)
    assert samples / solution.step_seconds >= throughput * (1 - 1e-9)
    assert solution.gap == 0
    assert plan_seconds(made, costs) == pytest.approx(solution.step_seconds, rel=1e-9)


def test_more_memory_is_never_slower(costs):
    steps = []
    for gib in (8, 16, 18, 20, 21, 24, 26, 40, 80):
        found = search(costs, budget_bytes(gib * GIB), 16)
        steps.append(found[0].step_seconds if found else float("inf"))
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == float("inf")
    assert plain_budget_bytes(24 * GIB) < plain_budget_bytes(20 * GIB)


def test_the_shipped_plan_is_read_and_written(costs):
    made = from_json(json.dumps(SHIPPED), 8)
    assert str(made) == ("batch 16 in 1, stages 32, ends 1-2*-4f-sp: 20x[1-1-8f-c] 12x[1-1-8f]")
    assert json.loads(to_json(made)) == SHIPPED
    assert 16 / plan_seconds(made, costs) == pytest.approx(14.732339301332983, rel=1e-6)


def test_plans_survive_json():
    for row in ENGINE:
        made = plan(row[1], row[2], row[3], row[5], row[6])
        assert from_json(to_json(made), 8) == made


def test_the_space_is_the_engines():
    for devices, layers, ends in [(4, 26, 13), (8, 50, 25), (16, 76, 38)]:
        space = [
            [
                s
                for stages in (1, 2, 4, 8)
                if stages <= devices
                for s in strategies(devices, stages, 8, devices, recompute)
            ]
            for recompute in (True, False)
        ]
        assert [len(own) for own in space] == [layers, ends]
        assert all(parse(str(s)) == s for own in space for s in own)


def test_what_is_no_strategy_is_refused():
    with pytest.raises(ValueError, match="no Galvatron strategy"):
        parse("2-4")


def test_the_floor_is_below_the_step_and_grows():
    random, objective = np.random.default_rng(0), GalvatronPipeline()
    for _ in range(300):
        stages, m = int(random.integers(1, 5)), int(random.integers(1, 9))
        plain, synchronised = random.uniform(0, 1, (2, stages))
        lower_bound = objective.lower_bound(plain, synchronised, m)
        assert lower_bound <= objective.step(plain, synchronised, m) * (1 + 1e-12)
        more = [
            plain + random.uniform(0, 0.3, stages),
            synchronised + random.uniform(0, 0.3, stages),
        ]
        assert objective.lower_bound(*more, m) >= lower_bound * (1 - 1e-12)
