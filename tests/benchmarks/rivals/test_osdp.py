"""OSDP's space by the layered search, against OSDP's problem written anew for an exact solver."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from ortools.sat.python import cp_model

from plait.benchmarks.rivals.osdp import Operator, Setting, best, every
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all

PICO = 10**12


def exact(operators, setting):
    """Seconds per sample: for every batch, each operator by itself picks how many of how many pieces
    are sharded; one variable is the largest piece that anyone gathers. Integers of picoseconds."""
    least = math.inf
    n, samples = setting.ranks, 0
    while True:
        samples += 1
        model = cp_model.CpModel()
        gathered = model.new_int_var(0, setting.budget_bytes, "gathered")
        memories, times = [], []
        for o in [operator for operator in operators for _ in range(operator.count)]:
            picks = []
            for g, k in [
                (1, 0),
                *((slices, n) for slices in o.slices for n in range(1, slices + 1)),
            ]:
                pick = model.new_bool_var("")
                picks.append(pick)
                sharded = Fraction(k, g)
                states = Fraction(setting.states) * o.weight_bytes
                memories.append(pick * round(states * (1 - sharded) + states * sharded / n))
                time = (
                    3
                    * k
                    * (setting.message_seconds + o.weight_bytes / g / n * setting.byte_seconds)
                )
                if k < g:
                    time += 2 * setting.message_seconds
                    time += 2 * float(1 - sharded) * o.weight_bytes / n * setting.byte_seconds
                times.append(pick * round((n - 1) * time * PICO))
                if k:
                    model.add(gathered >= -(-o.weight_bytes // g)).only_enforce_if(pick)
            model.add_exactly_one(picks)
        memory = sum(memories) + gathered + samples * setting.sample_bytes
        model.add(memory <= setting.budget_bytes)
        model.minimize(sum(times))
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        status = solver.solve(model)
        if status == cp_model.INFEASIBLE:
            return least
        assert status == cp_model.OPTIMAL
        least = min(least, solver.objective_value / PICO / samples + setting.sample_seconds)


def random_problem(seed):
    random = np.random.default_rng(seed)
    operators = [
        Operator(
            f"o{i}",
            int(random.integers(1, 3)),
            int(random.integers(1, 40)) * 240,
            ((1,), (1, 2), (1, 4), (1, 2, 4))[random.integers(4)],
        )
        for i in range(random.integers(1, 4))
    ]
    states = int(4 * sum(o.count * o.weight_bytes for o in operators))
    budget = int(states * random.uniform(0.3, 1.3))
    return operators, Setting(
        int(random.choice([2, 4, 8])),
        float(random.choice([0.0, 1e-5, 1e-3])),
        1e-7,
        4.0,
        max(1, int(budget * random.uniform(0.15, 0.5))),
        1e-4,
        budget,
    )


def agrees(operators, setting):
    plan, least = best(operators, setting), exact(operators, setting)
    if plan is None:
        return least == math.inf
    assert plan.gap < 1e-9
    return plan.sample_seconds == pytest.approx(least, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("block", range(4))
def test_the_layered_search_finds_what_an_exact_solver_finds(block):
    problems = [random_problem(50 * block + i) for i in range(50)]
    assert all(agrees(*p) for p in problems)
    mixed = [best(*p) for p in problems]
    assert sum(m is not None and len(set().union(*m.counts)) > 1 for m in mixed) > 5


def gpt2(layers, hidden, slices=(1, 2, 4)):
    """Weights of a GPT-2 in float32, as OSDP cuts them: the linear maps and the embedding."""

    def linear(name, across, down):
        return Operator(name, layers, 4 * across * down, slices)

    return [
        linear("qkv", hidden, 3 * hidden),
        linear("proj", hidden, hidden),
        linear("fc", hidden, 4 * hidden),
        linear("out", 4 * hidden, hidden),
        Operator("embedding", 1, 4 * 50257 * hidden, (1,)),
    ]


def test_a_gpt2_in_little_memory_mixes_whole_and_sharded_operators():
    operators = gpt2(6, 256, (1, 2))
    whole = 4 * sum(o.count * o.weight_bytes for o in operators)
    setting = Setting(8, 2e-5, 1e-10, 4.0, whole // 5, 2e-3, whole * 7 // 10)
    assert agrees(operators, setting)
    found = best(operators, setting)
    choices = set().union(*found.counts)
    assert "dp" in choices
    assert choices - {"dp"}


def test_ways_of_keeping_an_operator():
    assert [str(w) for w in every(Operator("o", 1, 8, (1, 2)))] == [
        "dp",
        "zero3:1/1",
        "zero3:1/2",
        "zero3:2/2",
    ]


def test_plans_mix_whole_and_sharded_layers_where_memory_lies_between(tmp_path):
    config, cluster = tmp_path / "config.json", load_cluster("8x1xrtx-titan@10")
    config.write_text(
        json.dumps(
            {"model_type": "gpt2", "n_embd": 512, "n_layer": 6, "n_head": 8, "vocab_size": 1000}
        )
    )
    source = load_source(f"hf:{config}", batch=32, seq=64)
    model = trace(source.model, source.batch)

    def made(memory_bytes, *pins):
        return plan(
            model,
            cluster,
            PlanOptions(
                roles=("dp", "zero3"),
                memory_actions=("keep",),
                memory_bytes=memory_bytes,
                pins=pins,
                simpler_within=0.0,
            ),
        )

    whole, sharded = (made(None, *pin_all(strategy)) for strategy in ("dp=8", "zero3=8"))
    room = whole.peak_bytes - sharded.peak_bytes
    assert room > 0
    mixed = [made(sharded.peak_bytes + room * share // 16) for share in (9, 10, 11)]
    for found in mixed:
        assert found.peak_bytes <= found.memory_limit_bytes
        assert {s.size("zero3") > 1 for s in found.strategies} == {False, True}, found.strategy_text
    times = [p.prediction.step_seconds for p in (sharded, *mixed, whole)]
    assert times == sorted(times, reverse=True)
