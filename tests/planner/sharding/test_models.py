"""On traced layers: the search agrees with the integer program alone, and with itself."""

from math import inf, isclose

import pytest

from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.dataflow import analyse_dataflow
from plait.ir.capture import trace
from plait.ir.model.mesh import Axis, Mesh
from plait.planner.sharding import AxisRule, SearchOptions, ShardingProblem, price, solve
from plait.planner.sharding.costs import RooflineCosts
from plait.planner.sharding.judge import state_and_saved_bytes
from plait.planner.sharding.network.build import build
from plait.tests import zoo

INTEGER = SearchOptions(prune=False, contract=False, eliminate=False, ascend=False)
ASCENT = SearchOptions(eliminate=False)


@pytest.fixture(scope="module")
def traced():
    module, batch = zoo.llama(2, batch=8, seq=16)
    model = trace(module.train(), batch)
    return model, analyse_dataflow(model)


def problem(traced, sizes: tuple[int, ...], memory: float = inf) -> ShardingProblem:
    """The block over axes of these sizes: any loop, weights whole or cut, the boundary whole."""
    model, known = traced
    function = model.function("llama_decoder_layer")
    axes = known.axes[function.name]
    mesh = Mesh(tuple(Axis(f"a{i}", size) for i, size in enumerate(sizes)))
    rules = []
    for size in sizes:
        states = {
            item.value: (
                "R",
                *(
                    (dim, part)
                    for dim, parts in enumerate(axes.factors[item.value])
                    for part, extent in enumerate(parts)
                    if extent % size == 0
                ),
            )
            for item in function.state_inputs()
        }
        rules.append(AxisRule(frozenset(axes.sizes), states))
    strides = tuple(mesh.stride(i) for i in range(len(sizes)))
    costs = RooflineCosts(function, axes, mesh, load_cluster("2x2x2xa100-80"), strides)
    return ShardingProblem(function, axes, mesh, tuple(rules), costs, memory)


@pytest.mark.parametrize("options", [SearchOptions(), ASCENT], ids=["all", "ascent"])
def test_agrees_with_the_integer_program(traced, options):
    given = problem(traced, (2,))
    made, reference = solve(given, gap=0.0, options=options), solve(given, 0.0, options=INTEGER)
    assert isclose(made.objective, reference.objective, rel_tol=1e-6)
    assert isclose(made.bound, made.objective, rel_tol=1e-6)


@pytest.mark.parametrize("sizes", [(2, 2), (2, 2, 2)])
def test_several_axes_close_the_gap(traced, sizes):
    question = problem(traced, sizes)
    made = solve(question)
    assert made.gap <= 0.0101
    assert isclose(price(question, made.axes), made.objective, rel_tol=1e-9)
    assert made.bound <= solve(question, gap=0.001).objective


def test_equal_questions_equal_answers(traced):
    assert solve(problem(traced, (2, 2))) == solve(problem(traced, (2, 2)))


def test_less_memory_is_never_faster(traced):
    free = solve(problem(traced, (2,)), gap=0.0)
    used = used_bytes(problem(traced, (2,)), free)
    question = problem(traced, (2,), memory=0.9 * used)
    tight = solve(question)
    assert tight.objective >= free.objective
    assert used_bytes(question, tight) <= question.memory_limit_bytes
    assert isclose(price(question, tight.axes), tight.objective, rel_tol=1e-9)


def used_bytes(question: ShardingProblem, made) -> int:
    """Bytes that a solution holds and saves, by the judge's count."""
    lies = {}
    for position, item in enumerate(question.function.inputs):
        lies[item.value] = tuple(axis.boundary.inputs[position] for axis in made.axes)
    for i, (op, known) in enumerate(zip(question.function.ops, question.axes.ops, strict=True)):
        for position, value in enumerate(op.results):
            options = [known.by_name[axis.op_splits[i]] for axis in made.axes]
            lies[value] = tuple(option.outputs[position] for option in options)
    return state_and_saved_bytes(question, lies)


def test_equal_values_share_a_table(traced):
    edges = build(problem(traced, (2, 2))).network.edges
    assert len({id(edge.seconds) for edge in edges}) < len(edges) / 2
