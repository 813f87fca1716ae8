"""Galvatron's strategy files: plans written as them, and read back as pins."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from plait.api import load_plan
from plait.api.cli import main
from plait.api.formats import files
from plait.api.formats.galvatron_files import galvatron_text
from plait.cost_model.hardware import load_cluster
from plait.ir.errors import UsageError
from plait.ir.model.model import Model
from plait.ir.plan.memory_action import KEEP, MemoryAction
from plait.ir.plan.strategy import parse_strategy
from plait.planner import PlanOptions
from plait.planner.pricing.candidate_pricer import CandidatePricer
from plait.planner.pricing.function_prices import FunctionPrices
from plait.planner.question.pins import Pin
from plait.planner.question.training import optimizer_states
from plait.planner.search.driver import SearchSpace

# fmt: off
FILE = {
    "pp_deg": 2, "tp_sizes_enc": "1,1,2,4", "tp_consecutive_flags": "1,1,1,1",
    "dp_types_enc": "1,0,1,0", "use_sp": "0,0,1,0", "checkpoint": "1,0,0,1", "global_bsz": 32,
    "chunks": 4, "pp_division": "2,2", "pipeline_type": "pipedream_flush",
    "default_dp_type": "zero2", "vtp": 2, "vsp": 0, "embed_sdp": 1,
}
# fmt: on


@pytest.fixture(scope="module")
def model(llama_file):
    return llama_file


@pytest.fixture
def planned(model, tmp_path):
    """The plan of `plait plan` with a pin."""

    def of(*pins):
        path = str(tmp_path / "plan.json")
        flags = [strategy for pin in pins for strategy in ("--pin", pin)]
        assert main(["plan", model, "--cluster", "8xh100", *flags, "-o", path]) == 0
        return load_plan(path)

    return of


def file_of(folder, **changes):
    path = folder / "galvatron.json"
    path.write_text(json.dumps(FILE | changes))
    return str(path)


def test_a_file_is_pinned_layer_by_layer_and_written_again(planned, tmp_path):
    plan = planned(file_of(tmp_path))
    assert (plan.global_batch, plan.micro_batches, len(plan.stages)) == (32, 4, 2)
    calls = {}
    for run in plan.layers:
        for i in range(run.first, run.last):
            calls[plan.calls[i]] = str(plan.strategy_of(run)), str(run.memory)
    assert [calls[f"model.layers.{i}"] for i in range(4)] == [
        ("pp=2,zero3=4", "recompute"),
        ("pp=2,zero2=4", "keep"),
        ("pp=2,zero3=2,sp=2", "keep"),
        ("pp=2,tp=4,sp", "recompute"),
    ]
    assert {strategy for name, (strategy, _) in calls.items() if "layers" not in name} == {
        "pp=2,zero3=2,tp=2,sp"
    }
    assert plan.prediction.step_seconds > 0
    assert json.loads(galvatron_text(plan)) == FILE
    uneven = FILE | {"pp_division": "1,3"}
    assert json.loads(galvatron_text(planned(file_of(tmp_path, **uneven)))) == uneven


def test_layers_pinned_with_their_memory_do_nothing_else_to_fit(model):
    traced = files.read(Path(model), Model, "plait/model")
    prices = FunctionPrices(traced, load_cluster("8xh100"))
    evaluator = CandidatePricer(prices, traced.batch, optimizer_states(PlanOptions(), 4))
    pin = Pin("*", parse_strategy("zero3=8"), KEEP)
    found = SearchSpace(evaluator, PlanOptions(pins=(pin,)), memory_limit_bytes=1).run()
    assert {candidate.memory_text for candidate in found} == {"keep"}


@pytest.mark.parametrize(
    "strategy", ["dp=8", "zero3=8", "pp=4,zero2=2", "zero2=4,tp=2,sp", "dp=2,sp=4"]
)
def test_plans_come_back_the_same(planned, tmp_path, strategy):
    plan = planned(f"*:{strategy}")
    path = tmp_path / "written.json"
    assert (
        main(["view", str(tmp_path / "plan.json"), "--format", "galvatron", "-o", str(path)]) == 0
    )
    again = planned(str(path))
    assert again.strategy_text == plan.strategy_text == strategy
    assert [x.memory for x in again.layers] == [x.memory for x in plan.layers]
    assert galvatron_text(again) == path.read_text()


@pytest.mark.parametrize(
    ("pins", "what"),
    [
        (["zero1=8"], "one of dp, zero2 and zero3"),
        (["dp=2,zero2=4"], "one of dp, zero2 and zero3"),
        (["dp=2,tp=4"], "then tp=N,sp or sp=N"),
        (["dp=4,cp=2"], "then tp=N,sp or sp=N"),
        (["dp=2,tp=2,sp=2"], "then tp=N,sp or sp=N"),
        (["dp=8", "model.layers.1:zero2=8"], "one role beside zero3"),
        (["dp=8", "exit:zero3=8"], "one strategy for embedding and head"),
    ],
)
def test_what_the_file_cannot_say_is_refused(planned, pins, what):
    with pytest.raises(UsageError, match=what):
        galvatron_text(planned(*pins))


def test_actions_and_schedules_that_galvatron_has_not_are_refused(planned):
    plan = planned("dp=8")
    halves = tuple(x if x.batch_only else replace(x, memory=MemoryAction(50)) for x in plan.layers)
    for other, what in (
        (replace(plan, layers=halves), "memory action 'save 50%'"),
        (replace(plan, schedule="interleaved"), "schedule interleaved"),
    ):
        with pytest.raises(UsageError, match=what):
            galvatron_text(other)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"pipeline_type": "gpipe"}, "pipeline_type"),
        ({"vtp": 3}, "not for 8 devices"),
        ({"tp_sizes_enc": "1,1,-2,4"}, "$.tp_sizes_enc: "),
        ({"vtp": 0}, "no strategy"),
        ({"tp_consecutive_flags": "1,0,1,1"}, "neighbours"),
        ({"pp_division": "2,3"}, "divide"),
        ({"default_dp_type": "fsdp"}, "default_dp_type"),
        ({"checkpoint": "1"}, "$.checkpoint: 1 layers"),
        ({"chunks": 0}, "$.chunks: "),
        ({"chunks": 5}, "do not divide 32 samples"),
        ({"use_sp": None}, "no strategy"),
    ],
)
def test_damaged_files_are_refused_by_name(model, tmp_path, capsys, changes, what):
    path = file_of(tmp_path, **changes)
    assert main(["plan", model, "--cluster", "8xh100", "--pin", path]) > 0
    said = capsys.readouterr().err
    assert what in said
    assert "galvatron.json" in said


def test_files_of_other_models_and_missing_fields_are_refused(model, tmp_path, capsys):
    layers = {n: "1,1" for n in ("tp_sizes_enc", "dp_types_enc", "use_sp", "checkpoint")}
    path = file_of(tmp_path, **layers, pp_division="1,1", tp_consecutive_flags="1,1")
    assert main(["plan", model, "--cluster", "8xh100", "--pin", path]) == 2
    assert "2 layers" in capsys.readouterr().err
    Path(path).write_text("{}")
    assert main(["plan", model, "--cluster", "8xh100", "--pin", path]) > 0
    assert "missing required field `pp_deg`" in capsys.readouterr().err
