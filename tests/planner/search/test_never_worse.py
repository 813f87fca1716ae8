"""Under one cost model no plan is slower than the plain strategies, on any model of the zoo."""

import pytest

from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.data_parallel import replicated
from plait.ir.errors import PlaitError
from plait.ir.model.layout import PARTIAL
from plait.ir.model.mesh import Axis, Mesh
from plait.planner import PlanOptions, plan
from plait.planner.pricing.function_prices import FunctionPrices
from plait.planner.question.pins import pin_all
from plait.planner.sharding import ShardingProblem, price, solve
from plait.planner.sharding.axis_rules import axis_rule
from plait.planner.sharding.costs import RooflineCosts
from plait.tests.sampling import some
from plait.tests.zoo import ZOO

PLAIN = ("dp=4", "zero3=4", "tp=4")


@pytest.mark.parametrize("name", some(ZOO, 36))
def test_a_plan_is_no_slower_than_plain_strategies(name, traced):
    model, cluster = traced(name), load_cluster("4xh100")
    best = plan(model, cluster, PlanOptions()).prediction.step_seconds
    compared = 0
    for strategy in PLAIN:
        try:
            made = plan(model, cluster, PlanOptions(pins=pin_all(strategy)))
        except PlaitError:
            continue  # this model cannot be split so
        assert best <= made.prediction.step_seconds * (1 + 1e-9), strategy
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize("name", ["llama", "mixtral", "bert", "t5", "swin", "convnext"])
def test_a_split_costs_no_more_than_none_and_proves_its_gap(name, traced):
    model, mesh = traced(name), Mesh((Axis("tp", 4),))
    prices = FunctionPrices(model, load_cluster("4xh100"))
    for function in model.functions:
        axes = prices.flow.axes[function.name]
        rule = axis_rule(Axis("tp", 4), function, prices.flow)
        costs = RooflineCosts(function, axes, mesh, prices.cluster, (1,))
        problem = ShardingProblem(function, axes, mesh, (rule,), costs)
        solution = solve(problem)
        assert price(problem, solution.axes) == pytest.approx(solution.objective, rel=1e-9)
        assert (
            solution.bound
            <= solution.objective
            <= price(problem, (replicated(function),)) * (1 + 1e-9)
        )
        assert solution.gap <= 0.01
        assert PARTIAL not in solution.axes[0].boundary.inputs
