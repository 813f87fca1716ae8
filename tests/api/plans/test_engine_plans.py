"""Plans leave for other engines and come back: the same strategies, stages and recomputation."""

import json

import pytest

from plait.api.cli import main
from plait.api.plans.engine_plans import export
from plait.api.plans.plan_object import load_plan
from plait.tests.sampling import some_rows


@pytest.fixture(scope="module")
def model(llama_file):
    return llama_file


@pytest.fixture
def planned(model, tmp_path):
    """The plan of `plait plan` with some flags."""

    def of(*flags):
        path = str(tmp_path / "plan.json")
        assert main(["plan", model, "--cluster", "8xh100", *flags, "-o", path]) == 0
        return load_plan(path)

    return of


CASES = [
    ("torchtitan", ".toml", "pp=2,dp=2,zero3=2", "recompute"),
    ("torchtitan", ".toml", "zero3=4,tp=2,sp", "keep"),
    ("megatron", ".args", "pp=2,zero1=2,tp=2,sp", "recompute"),
    ("megatron", ".yaml", "pp=4,dp=2", "keep"),
    ("deepspeed", ".json", "zero2=8", "keep"),
    ("deepspeed", ".json", "zero1=4,tp=2", "recompute"),
    ("accelerate", ".yaml", "dp=2,zero3=2,tp=2", "recompute"),
]


@pytest.mark.parametrize(("engine", "suffix", "strategy", "memory"), some_rows(CASES, 2))
def test_a_plan_for_an_engine_comes_back(planned, tmp_path, engine, suffix, strategy, memory):
    flags = ("--engine", engine, "--pin", strategy, "--memory-actions", memory)
    plan = planned(*flags, "--micro-batches", "2")
    path = tmp_path / f"theirs{suffix}"
    assert main(["export", str(tmp_path / "plan.json"), "--to", engine, "-o", str(path)]) == 0
    batch = () if engine != "accelerate" else ("--micro-batches", "2")
    again = planned("--pin", str(path), *batch)
    assert again.strategy_text == plan.strategy_text == strategy
    assert again.engine == engine
    assert again.micro_batches == plan.micro_batches
    assert [x.memory for x in again.layers] == [x.memory for x in plan.layers]
    if "pp=" in strategy:
        assert [s.model_chunks for s in again.stages] == [s.model_chunks for s in plan.stages]
    assert "not said here" not in path.read_text()


def test_what_a_file_cannot_say_stands_in_it_with_its_price(planned, tmp_path, capsys):
    planned("--pin", "zero3=8", "--pin", "exit:zero3=4,tp=2", "--compress", "none")
    assert main(["export", str(tmp_path / "plan.json"), "--to", "torchtitan"]) == 0
    text = capsys.readouterr().out
    assert "not said here: exit: zero3=4,tp=2 becomes zero3=8" in text or "zero3=4,tp=2" in text
    assert "what that costs: " in text
    assert "/step instead of" in text


def test_a_strategy_that_the_engine_has_not_is_refused_by_name(planned, tmp_path, capsys):
    planned("--pin", "pp=2,zero3=4")
    assert main(["export", str(tmp_path / "plan.json"), "--to", "accelerate"]) == 2
    assert "accelerate has no pp" in capsys.readouterr().err


def test_galvatron_is_one_of_them(planned):
    made = planned("--engine", "galvatron", "--pin", "zero3=8")
    assert json.loads(export(made, "galvatron"))["dp_types_enc"] == "1,1,1,1"


def test_a_foreign_file_is_explained(model, tmp_path, capsys):
    path = tmp_path / "theirs.toml"
    path.write_text(
        "[parallelism]\ntensor_parallel_degree = 2\n[training]\nlocal_batch_size = 8\n"
        "[activation_checkpoint]\nmode = 'full'\n"
    )
    line = ["explain", str(path), model, "--cluster", "2xh100", "--json"]
    assert main(line) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["engine"], report["word"]) == ("torchtitan", "tp=2,sp")
    assert report["fits"]
    changes = {c["change"]: c for c in report["changes"]}
    assert changes["recompute none"]["gain"] > 0
    assert changes["tensor 1"]["word"] == "dp=2"
    gains = [c["gain"] for c in report["changes"]]
    assert gains == sorted(gains, reverse=True)
    assert main([*line[:-1], "--memory-limit", "1145MiB"]) == 0
    assert "does not fit" in capsys.readouterr().out


def test_a_foreign_file_alone_asks_for_model_and_cluster(tmp_path, capsys):
    path = tmp_path / "theirs.toml"
    path.write_text("[parallelism]\ntensor_parallel_degree = 4\n")
    assert main(["explain", str(path)]) == 2
    assert "--cluster" in capsys.readouterr().err
