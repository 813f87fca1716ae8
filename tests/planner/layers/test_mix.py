"""Blends: no uniform candidate that fits is faster, memory is kept, and counts are the best ones."""

import itertools
from math import inf

import pytest
from msgspec.structs import replace

from plait.cost_model.hardware import load_cluster
from plait.ir.errors import InfeasibleError
from plait.ir.lowering.rescale import rescale
from plait.planner import PlanOptions, plan
from plait.planner.layers.mix import LayerMix, fastest, groups
from plait.planner.pricing.candidate_pricer import CandidatePricer
from plait.planner.pricing.function_prices import FunctionPrices
from plait.planner.question.candidate import Decision
from plait.planner.question.training import optimizer_states
from plait.planner.search.driver import SearchSpace


@pytest.fixture(scope="module")
def space(traced):
    model, cluster = rescale(traced("gpt2"), 64), load_cluster("4xa100-80")
    pricer = CandidatePricer(
        FunctionPrices(model, cluster), model.batch, optimizer_states(PlanOptions(), 4)
    )
    made = SearchSpace(pricer, PlanOptions(roles=("pp", "dp", "zero1", "zero3")), 1 << 60)
    made.run()
    return made


def choices(pricer, group, compressed_optimizer):
    """Every assignment of a group's choices to calls, as decisions."""
    calls = [i for i in range(len(pricer.calls)) if i not in pricer.batch_only]
    for picked in itertools.product(group, repeat=len(calls)):
        at = dict(zip(calls, picked, strict=True))
        mixes = []
        for i in range(len(pricer.calls)):
            (decision,) = at.get(i, picked[0]).decisions
            mixes.append(Decision(i, i + 1, decision.strategy, decision.memory))
        yield tuple(mixes)


def test_one_stage_is_as_fast_as_any_assignment(space):
    """Against every assignment to every call, at budgets between the least and the most memory."""
    pricer, tried = space.pricer, 0
    for group in groups([c for c in space.candidates if len(c.strategies) == 1]):
        if len(group[0].bounds) > 2:
            continue
        group = [*group[:2], group[-1]]
        bounds = [0, len(pricer.calls)]
        priced = [
            pricer.mixed(replace(group[0].assignment, decisions=d), bounds)
            for d in choices(pricer, group, group[0])
        ]
        peaks = sorted(c.peak_bytes for c in group)
        # sums over layers only estimate the worst moment, which costs a little where layers are few
        for share, slower in ((0.1, 1.1), (0.5, 1.02), (0.9, 1.08)):
            budget = int(peaks[0] + share * (peaks[-1] - peaks[0]))
            best = min(
                (c.step_seconds for c in priced if c and c.peak_bytes <= budget), default=None
            )
            mixed = LayerMix(pricer, group).best(budget, inf)
            if best is None:
                assert mixed is None
                continue
            assert mixed is not None
            assert mixed.peak_bytes <= budget
            assert mixed.step_seconds <= best * slower
            assert mixed.step_seconds >= fastest(group) * (1 - 1e-9)
            tried += 1
    assert tried >= 3


def test_less_memory_is_never_faster_and_never_exceeded(traced):
    model, cluster = rescale(traced("gpt2"), 64), load_cluster("2xa100-80")
    free = plan(model, cluster, PlanOptions())
    runtime = cluster.device.runtime_overhead_bytes
    used = free.peak_bytes - runtime
    before = free.prediction.step_seconds
    for share in (0.6,):
        budget = runtime + int(share * used)
        try:
            answer = plan(model, cluster, PlanOptions(memory_bytes=budget))
        except InfeasibleError:
            break
        assert answer.peak_bytes <= budget
        assert answer.prediction.step_seconds >= before * (1 - 1e-9)
        before = answer.prediction.step_seconds
