"""The search against trying everything, judged apart."""

from itertools import product

import numpy as np
import pytest
from msgspec.structs import replace

from plait.benchmarks.rivals.galvatron_search_space import GalvatronPipeline
from plait.benchmarks.rivals.layers.check import faults
from plait.benchmarks.rivals.layers.exact_search import fastest, solve
from plait.benchmarks.rivals.layers.objective import Objective, OneForwardOneBackward
from plait.benchmarks.rivals.layers.problem import (
    Choice,
    EqualLayers,
    LayerProblem,
    LayerSolution,
    LayerStage,
    parse,
)

OBJECTIVES = [OneForwardOneBackward(), GalvatronPipeline()]


def random_problem(seed: int) -> LayerProblem:
    """Up to three stages of different devices, with few layers and choices."""
    random = np.random.default_rng(seed)
    stages = tuple(random_stage(random) for _ in range(random.integers(1, 4)))
    return LayerProblem(stages, int(random.integers(1, 6)))


def random_stage(random: np.random.Generator) -> LayerStage:
    speed, size = random.uniform(0.5, 2), int(random.integers(5, 40))

    def choice(name: str) -> Choice:
        seconds = float(random.integers(1, 9) * speed)
        return Choice(
            name, seconds, seconds + float(random.integers(0, 4)), int(random.integers(9))
        )

    layers = tuple(
        EqualLayers(
            f"block{n}", int(random.integers(1, 4)), tuple(choice(f"c{k}") for k in range(3))
        )
        for n in range(random.integers(1, 3))
    )
    return LayerStage(layers, size, int(random.integers(5)), float(random.integers(3)))


def every_count(choices: int, count: int) -> list[tuple[int, ...]]:
    return [c for c in product(range(count + 1), repeat=choices) if sum(c) == count]


def best_seconds(problem: LayerProblem, objective: Objective) -> float:
    """The fastest of all ways that fit and that no other way of a stage beats in both seconds."""
    fronts = []
    for stage in problem.stages:
        variants = set()
        for counts in product(*(every_count(len(x.choices), x.count) for x in stage.layers)):
            pairs = [
                (n, c)
                for own, x in zip(counts, stage.layers, strict=True)
                for n, c in zip(own, x.choices, strict=True)
            ]
            if sum(n * c.peak_bytes for n, c in pairs) <= stage.free_bytes:
                seconds = stage.seconds + sum(n * c.seconds for n, c in pairs)
                variants.add((seconds, sum(n * c.synchronised_seconds for n, c in pairs)))
        fronts.append(
            [
                w
                for w in variants
                if not any(v != w and v[0] <= w[0] and v[1] <= w[1] for v in variants)
            ]
        )
    m = problem.micro_batches
    steps = [objective.step(*zip(*variants, strict=True), m) for variants in product(*fronts)]
    return float(min(steps, default=np.inf))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("first", range(0, 300, 50))
def test_it_is_as_fast_as_trying_everything(first, objective):
    for seed in range(first, first + 50):
        problem = random_problem(seed)
        solution, best = solve(problem, objective), best_seconds(problem, objective)
        if solution is None:
            assert best == np.inf
            continue
        assert solution.step_seconds == pytest.approx(best, rel=1e-9)
        assert solution.gap == pytest.approx(0, abs=1e-9)
        assert faults(problem, solution, objective) == []


@pytest.mark.parametrize("width", [1, 3])
def test_a_narrow_search_says_how_far_off_it_may_be(width):
    gaps = []
    for seed in range(100):
        problem, objective = random_problem(seed), OBJECTIVES[0]
        solution, best = solve(problem, objective, width), best_seconds(problem, objective)
        if solution is not None:
            assert solution.bound_seconds <= best * (1 + 1e-9)
            assert faults(problem, solution, objective) == []
            gaps.append(solution.gap)
    assert max(gaps) > 0


def test_more_memory_is_never_slower():
    for seed in range(60):
        problem, before = random_problem(seed), np.inf
        for extra in range(0, 40, 8):
            stages = tuple(replace(s, budget_bytes=s.budget_bytes + extra) for s in problem.stages)
            solution = solve(replace(problem, stages=stages), OBJECTIVES[0])
            step = solution.step_seconds if solution else np.inf
            assert step <= before * (1 + 1e-9)
            before = step


def test_the_best_of_several_problems_is_the_best_of_each():
    problems = [random_problem(seed) for seed in range(30)]
    best = fastest(problems, OBJECTIVES[0])
    alone = [s.step_seconds for p in problems if (s := solve(p, OBJECTIVES[0]))]
    assert best is not None
    assert best.solution.step_seconds == min(alone)
    assert faults(problems[best.number], best.solution, OBJECTIVES[0]) == []


def test_a_stopped_search_keeps_its_best_and_a_bound():
    problems = [random_problem(seed) for seed in range(30)]
    best, proven = (fastest(problems, OBJECTIVES[0], stop=lambda s=s: s) for s in (True, False))
    assert best is not None
    assert proven is not None
    assert best.solution.bound_seconds <= proven.solution.step_seconds <= best.solution.step_seconds
    assert faults(problems[best.number], best.solution, OBJECTIVES[0]) == []


def test_text_is_the_problem():
    for seed in range(50):
        problem = random_problem(seed)
        assert parse(str(problem)) == problem


def test_what_is_no_problem_names_its_line():
    with pytest.raises(ValueError, match="fast choice"):
        parse("problem 2 micro-batches\nfast choice")


def test_the_judge_names_every_kind_of_fault():
    stage = LayerStage(
        (EqualLayers("block", 2, (Choice("keep", 1.0, 1.5, 4), Choice("again", 2.0, 2.5, 1))),), 6
    )
    problem, objective = LayerProblem((stage,), 1), OBJECTIVES[0]
    right = solve(problem, objective)
    assert right == LayerSolution((((1, 1),),), 4.0, 4.0)
    for wrong, says in [
        (replace(right, counts=()), "0 stages have counts, of 1"),
        (replace(right, counts=((),)), "0 layers have counts, of 1"),
        (replace(right, counts=(((1, 0),),)), "are no counts of 2 layers"),
        (replace(right, counts=(((2, 0),),)), "holds 8 B of 6 B"),
        (replace(right, step_seconds=3.0), "a step takes 4.0 s, not 3.0 s"),
        (replace(right, bound_seconds=5.0), "is above the step's"),
    ]:
        assert says in " ".join(faults(problem, wrong, objective))
