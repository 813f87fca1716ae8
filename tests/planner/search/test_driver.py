"""The planner: exact per function, never over budget, and no slower for a deeper model."""

import pytest

from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.errors import InfeasibleError, UsageError
from plait.ir.plan.verify import verify_plan
from plait.planner import PlanOptions, plan
from plait.planner.pricing.stage_partition import behind_share, partition
from plait.planner.question.options import SIMPLER_WITHIN
from plait.planner.question.pins import pin_all
from plait.tests import zoo


@pytest.fixture(scope="module")
def model():
    module, batch = zoo.llama(4, batch=16)
    return trace(module.train(), batch)


def test_the_plan_beats_what_it_names_as_next_best(model):
    told: list[tuple[float, float]] = []
    options = PlanOptions()
    fastest = plan(model, load_cluster("2x4xh100"), options, watch=lambda *now: told.append(now))
    verify_plan(fastest)
    best = [now[0] for now in told]  # so far, each time that it fell or its bound rose
    assert best == sorted(best, reverse=True)
    assert best[-1] >= fastest.prediction.step_seconds / (1 + SIMPLER_WITHIN)
    assert all(0 < least <= fastest.prediction.step_seconds for _, least in told)
    assert all(
        a.step_seconds >= fastest.prediction.step_seconds for a in fastest.alternatives if a.fits
    )


def test_roles_limit_the_space(model):
    made = plan(model, load_cluster("4xh100"), PlanOptions(roles=("zero3",)))
    assert made.strategy_text == "zero3=4"


def test_too_little_memory_says_which_term(model):
    with pytest.raises(InfeasibleError, match=r"GiB on every device of stage \d, has") as caught:
        plan(model, load_cluster("4xh100"), PlanOptions(memory_bytes=10**6))
    report = caught.value.report
    assert report["shortfall"] == report["peak"] - 10**6
    fitting = [fix["change"] for fix in report["fixes"] if fix["fits"]]
    assert fitting
    assert all("--memory" in change for change in fitting)  # nothing fits in a megabyte


def test_a_pin_must_use_all_devices(model):
    with pytest.raises(UsageError, match="2 devices, the cluster has 4"):
        plan(model, load_cluster("4xh100"), PlanOptions(pins=pin_all("dp=2")))


def test_tensor_parallel_layers_cut_their_weights(model):
    made = plan(model, load_cluster("4xh100"), PlanOptions(pins=pin_all("tp=4")))
    block = next(s for s in made.shardings if s.function == "llama_decoder_layer")
    function = model.function("llama_decoder_layer")
    for item, layout in zip(function.inputs, block.boundary.inputs, strict=True):
        if item.kind == "parameter" and len(function.types[item.value].shape) == 2:
            assert layout[block.mesh.index("tp")] != "R", item.name


def test_stages_balance_their_slowest():
    assert partition([1.0, 1.0, 1.0, 1.0, 4.0], 2) == [0, 4, 5]
    assert partition([1.0], 2) is None
    assert behind_share([0.0, *[1.0] * 24, 2.45], 8) == [0, 5, 8, 11, 15, 18, 21, 25, 26]
    assert behind_share([5.0, 0.0, 0.0], 3) == [0, 1, 2, 3]
    assert behind_share([1.0], 2) is None


def test_what_no_strategy_splits_is_named(model):
    """The function and its tokens, or the operator whose dimension does not divide."""
    with pytest.raises(UsageError, match=r"cp=5: \w+: tokens do not split 5 ways"):
        plan(model, load_cluster("local:5"), PlanOptions(pins=pin_all("cp=5")))
    with pytest.raises(UsageError, match=r"16 samples are not divisible by the 5 parts of dp=5"):
        plan(model, load_cluster("local:5"), PlanOptions(pins=pin_all("dp=5")))
