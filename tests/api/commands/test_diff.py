"""`plait diff`: two plans, and a plan against baselines."""

import json

import pytest

from plait.api.cli import main


@pytest.fixture(scope="module")
def files(tmp_path_factory, llama_file):
    folder, model = tmp_path_factory.mktemp("diff"), llama_file
    one, other = (str(folder / f"{name}.json") for name in ("one", "other"))
    assert main(["plan", model, "--cluster", "4xh100", "--pin", "dp=4", "-o", one]) == 0
    pins = ["--pin", "dp=4", "--pin", "model.layers.[1-2]:dp=2,tp=2"]
    assert main(["plan", model, "--cluster", "4xh100", *pins, "-o", other]) == 0
    return one, other


def test_two_plans_differ_where_their_layers_do(files, capsys):
    assert main(["diff", *files]) == 0
    said = capsys.readouterr().out
    assert "model.layers.1 to model.layers.2" in said
    assert "dp=4 keep -> dp=2,tp=2 keep" in said
    assert main(["diff", files[0], files[0]]) == 0
    assert "all layers do the same" in capsys.readouterr().out


def test_baselines_are_priced_for_the_same_model(files, capsys):
    capsys.readouterr()
    assert main(["diff", files[0], "--against", "ddp,fsdp,megatron:tp=4", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in body["baselines"]}
    assert rows["ddp"]["step_time_s"] == pytest.approx(body["plan"]["step_time_s"], rel=1e-12)
    assert rows["fsdp"]["word"] == "zero3=4"
    assert rows["megatron:tp=4"]["word"] in ("tp=4", "tp=4,sp")
    assert all(row["times_as_long"] > 0.99 for row in rows.values())


def test_every_verb_prices_a_plan_as_an_engine_runs_it(files, capsys):
    def said(*command):
        capsys.readouterr()
        assert main([*command, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    ours = said("explain", files[0])
    theirs = said("explain", files[0], "--engine", "megatron")
    assert theirs["strategy"][-1]["word"] == ours["strategy"][-1]["word"] == "dp=4"
    assert theirs["step_time_s"] != ours["step_time_s"]
    same_job = said("diff", files[0], "--engine", "torchtitan")
    assert same_job["plan_step_time_s"] == ours["step_time_s"]
    simulated = said("simulate", files[0], "--engine", "megatron")
    assert simulated["step_time_s"] == pytest.approx(theirs["step_time_s"], rel=0.02)
    rows = said("diff", files[0], "--against", "fsdp", "--engine", "torchtitan")["baselines"]
    assert rows[0]["possible"]


def test_decisions_that_an_engine_cannot_run_are_named(files, capsys):
    assert main(["explain", files[1], "--engine", "megatron"]) == 2
    assert "one strategy for all layers" in capsys.readouterr().err


def test_one_other_side_is_needed(files, capsys):
    assert main(["diff", files[0]]) == 2
    assert main(["diff", *files, "--against", "ddp"]) == 2
    assert main(["diff", files[0], "--against", "horovod"]) == 2
    assert "unknown baseline" in capsys.readouterr().err
