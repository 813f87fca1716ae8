"""`plait explain`: every part is found by name, sums are the plan's, and a rival is priced alike."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

import plait
from plait.api.cli import main
from plait.tests.paths import LLAMA


def adds_up(term):
    parts = term["parts"]
    assert not parts or sum(p["value"] for p in parts) == pytest.approx(term["value"], rel=1e-9)
    for part in parts:
        adds_up(part)


def test_json_is_the_whole_tree(files, capsys):
    capsys.readouterr()
    assert main(["explain", files[1], "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    (step,) = body["terms"]
    assert step["value"] == pytest.approx(body["step_time_s"], rel=1e-12)
    adds_up(step)
    assert main(["explain", files[1], "--memory", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert [t["value"] for t in body["terms"]] == [row["peak"] for row in body["memory"]]


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("llama_decoder_layer", "llama_decoder_layer ×2: pp=2,dp=4"),
        ("model.layers.[0-1]", "llama_decoder_layer ×2"),
        ("llama_decoder_layer.3", "llama_decoder_layer ×2"),
        ("decoder", "matrix products"),
        ("stage1", "synchronisation"),
        ("stage0", "alpha_scale_up"),
    ],
)
def test_parts_are_found_by_name(files, capsys, where, says):
    assert main(["explain", files[1], where]) == 0
    text = capsys.readouterr().out
    assert says in text
    assert "sources" in text


def test_python_gives_the_same_text(files, capsys):
    loaded = plait.load_plan(files[1])
    for where in ("stage0", "layers.3"):
        capsys.readouterr()
        assert main(["explain", files[1], where]) == 0
        text = capsys.readouterr().out.rstrip("\n")
        assert plait.explain(loaded, where) == loaded.explain(where) == text


def test_a_plan_prints_saves_and_shows_itself(files, tmp_path):
    loaded = plait.load_plan(files[1])
    assert f"strategy  {loaded.strategy_text}" in str(loaded)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == Path(files[1]).read_bytes()
    assert plait.load_plan(tmp_path / "again.json") == loaded
    loaded.view(tmp_path / "report.html")
    assert loaded.strategy_text in (tmp_path / "report.html").read_text()


def test_a_plan_that_was_edited_is_told_from_its_terms(files):
    found = plait.load_plan(files[1])
    assert "note:" not in found.explain() + found.explain(memory=True)
    edited = replace(found, prediction=replace(found.prediction, step_seconds=1.0))
    assert "note: step: the plan says 1 s, its terms add up to" in edited.explain()


def test_unknown_parts_are_named(files, capsys):
    assert main(["explain", files[1], "nothing"]) == 2
    assert (
        "known: data, entry, llama_decoder_layer, exit, stage0, stage1" in capsys.readouterr().err
    )


def test_why_not_prices_the_other_strategy(files, capsys):
    model, plan_file = files
    capsys.readouterr()
    assert main(["explain", plan_file, "--why-not", "tp=8", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    args = ["plan", model, "--cluster", "8xh100", "--pin", "*:tp=8", "--json"]
    assert main(args) == 0
    alone = json.loads(capsys.readouterr().out)
    assert body["step_time_s"] == alone["step_time_s"]
    assert body["seconds"]["sum"][1] == pytest.approx(alone["step_time_s"], rel=1e-9)
    assert body["bytes"]["sum"][1] == body["peak"] == alone["memory"][0]["peak"]
    assert main(["explain", plan_file, "--why-not", "tp=8"]) == 0
    assert "all_reduce over tp" in capsys.readouterr().out


def test_why_not_says_what_does_not_fit(files, tmp_path, capsys):
    model, _ = files
    tight = str(tmp_path / "tight.json")
    args = ["plan", model, "--cluster", "8xh100", "--pin", "*:zero3=8", "-o", tight]
    assert main(args) == 0
    sharded = plait.load_plan(tight).peak_bytes
    assert main([*args, "--memory", f"{sharded + 1}B"]) == 0
    assert main(["explain", tight, "--why-not", "dp=8"]) == 0
    assert "does not fit: needs" in capsys.readouterr().out


def test_a_plan_never_runs_the_code_it_names(tmp_path, capsys):
    plan_file = str(tmp_path / "plan.json")
    assert main(["plan", LLAMA, "--cluster", "8xh100", "--pin", "*:dp=8", "-o", plan_file]) == 0
    assert main(["explain", plan_file, "--why-not", "tp=8"]) == 2
    assert "name it with --model" in capsys.readouterr().err
    assert main(["explain", plan_file, "--why-not", "tp=8", "--model", LLAMA]) == 0
