"""`verify --scale tiny`: plans for many devices, verified in kind on a few ranks."""

import json
import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from plait.api.cli import main
from plait.api.plans.plan_object import load_plan
from plait.ir.capture.sources.shrink_config import changes, kind, shrink_config
from plait.ir.plan.strategy import parse_strategy
from plait.planner.interop.shrink import shrink, shrink_strategies, spread

# fmt: off
LLAMA = {
    "model_type": "llama", "vocab_size": 1001, "hidden_size": 256, "intermediate_size": 688,
    "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2,
}
# fmt: on
GPT2 = {"model_type": "gpt2", "n_embd": 128, "n_layer": 8, "n_head": 8, "vocab_size": 1001}
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 8}
T5 = {
    "model_type": "t5",
    "d_model": 128,
    "d_kv": 16,
    "d_ff": 256,
    "num_layers": 6,
    "num_heads": 8,
    "vocab_size": 1000,
}
FEED = ["--batch", "32", "--seq", "64"]


def planned(folder: Path, config: dict, pins: list[str], *more: str) -> tuple[str, str]:
    """A plan of a configuration for two nodes of eight: the files of both."""
    file, plan_file = folder / "config.json", str(folder / "plan.json")
    file.write_text(json.dumps(config))
    source = f"hf:{file}"
    asked = [f"--pin={pin}" for pin in pins]
    assert (
        main(["plan", source, *FEED, "--cluster", "2x8xh100", *asked, *more, "-o", plan_file]) == 0
    )
    return plan_file, source


def verified(made: str, source: str, *more: str) -> int:
    return main(["verify", made, source, *FEED, "--scale", "tiny", *more])


def strategy_text(text: str, ranks: int) -> str:
    strategies = [parse_strategy(strategy) for strategy in text.split(" | ")]
    return " | ".join(map(str, shrink_strategies(strategies, ranks).values()))


@pytest.mark.parametrize(
    ("strategy", "ranks", "expected"),
    [
        ("pp=2,zero3=2,tp=2", 4, "pp=2,tp=2"),
        ("pp=2,zero3=2,tp=2", 8, "pp=2,zero3=2,tp=2"),
        ("pp=8,zero3=32,tp=4,sp", 4, "pp=2,tp=2,sp"),
        ("zero3=64", 4, "zero3=2"),
        ("pp=8,tp=8", 1, "dp=1"),
        ("pp=4,dp=4", 3, "pp=2"),
        ("dp=2,zero3=8 | zero3=16", 4, "dp=2,zero3=2 | zero3=4"),
        ("dp=4,zero1=2,tp=2 | zero2=8,tp=2", 2, "tp=2 | zero2=2"),
        ("pp=2,zero3=4,tp=2 | pp=2,zero3=4,sp=2", 4, "pp=2,tp=2 | pp=2,sp=2"),
        ("dp=4,zero3=4@3/4 | dp=16", 4, "dp=2,zero3=2@3/4 | dp=4"),
    ],
)
def test_strategies_keep_as_many_roles_as_fit(strategy, ranks, expected):
    assert strategy_text(strategy, ranks) == expected


def test_every_strategy_of_a_stack_has_a_layer():
    keep, other = (parse_strategy("dp=2"), "keep"), (parse_strategy("dp=2"), "recompute")
    assert spread([keep, other, keep], 3) == [keep, other, keep]
    assert spread([keep] * 30 + [other] * 2, 2) == [keep, other]
    assert spread([keep] * 30 + [other] * 2, 3) == [keep, keep, other]


def test_a_configuration_keeps_its_kind():
    config = LLAMA | {
        "head_dim": 32,
        "layer_types": ["a", "b"] * 4,
        "eos_token_id": 1000,
        "sliding_window": 4096,
        "rope_theta": 1e4,
        "hidden_act": "silu",
    }
    small = shrink_config(config, {}, 3, 2, (64, 16))
    assert small["num_attention_heads"] / small["num_key_value_heads"] == 4
    assert small["hidden_size"] == small["num_attention_heads"] * small["head_dim"]
    assert small["vocab_size"] % 2 == 1
    assert small["eos_token_id"] == small["vocab_size"] - 1
    assert small["layer_types"] == ["a", "b", "a"]
    assert small["num_hidden_layers"] == 3
    assert small["sliding_window"] == 4096
    assert shrink_config(config, {}, 3, 2, (8192, 16))["sliding_window"] == 8
    assert {name for name, *_ in changes(config, small)} == {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "eos_token_id",
        "head_dim",
    }
    assert kind("rope_theta") is None


def test_layers_go_on_until_every_strategy_occurs(files):
    plan = load_plan(files[1])
    small = shrink(plan, 4)
    assert small.devices == 4
    assert small.layers == 2
    (first, border), (_, last) = plan.model_chunks
    uneven = replace(
        plan,
        stages=(
            replace(plan.stages[0], model_chunks=((first, border + 1),)),
            replace(plan.stages[1], model_chunks=((border + 1, last),)),
        ),
    )
    assert shrink(uneven, 4).layers == 3


MIXED = ["*:dp=2,zero3=4,tp=2", "llama_decoder_layer[2-3]:zero3=16"]


@pytest.mark.ranks
def test_a_plan_for_two_nodes_is_verified_on_two_ranks(tmp_path, capsys):
    made, source = planned(tmp_path, LLAMA, MIXED)
    capsys.readouterr()
    assert verified(made, source, "--ranks", "2", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["scale"]["strategies"] == [["dp=2,zero3=4,tp=2", "tp=2"], ["zero3=16", "zero3=2"]]
    assert report["scale"]["fields"]["num_hidden_layers"] == [8, 2]
    assert report["scale"]["not_covered"] == ["dp"]


@pytest.mark.long
@pytest.mark.ranks
def test_a_removed_collective_is_noticed(tmp_path, capsys):
    plan_file, source = planned(tmp_path, LLAMA, MIXED)
    program = tmp_path / "program"
    assert verified(plan_file, source, "--ranks", "2", "--keep", str(program)) == 0
    remove_collective(program)
    capsys.readouterr()
    assert verified(plan_file, source, "--ranks", "2", "--program", str(program)) == 7
    said = capsys.readouterr()
    assert "not covered with 2 ranks: dp (--ranks 8" in said.out
    assert "DIFFERS" in said.out


def remove_collective(program: Path) -> None:
    for file in sorted(program.glob("functions/*layer*.py")):
        text = file.read_text()
        broken = re.sub(r"comm\.all_reduce\((\w+), \"tp\"\)", r"\1", text, count=1)
        if broken != text:
            file.write_text(broken)
            return
    raise AssertionError("no function adds up over tp")


@pytest.mark.parametrize("source", ["model.json", "other"])
def test_what_cannot_run_is_refused(source, files, tmp_path, capsys):
    plan_file, model_file = files[1], files[0]
    if source == "model.json":
        assert main(["verify", plan_file, model_file, "--scale", "tiny"]) == 2
        assert "no weights to run" in capsys.readouterr().err
    else:
        file = tmp_path / "config.json"
        file.write_text(json.dumps(LLAMA))
        assert verified(plan_file, f"hf:{file}") == 6
        assert "is not the model of" in capsys.readouterr().err


# fmt: off
LONG = {
    "gpt2": (GPT2, [
        (["*:pp=2,zero3=4,tp=2"], ["--micro-batches", "8"]),
        (["*:zero3=8,tp=2,sp"], ["--memory-actions", "save 50%"]),
        (["*:dp=4,zero1=4"], ["--memory-actions", "split 4"]),
        (["*:pp=4,tp=2,dp=2"], ["--memory-actions", "recompute", "--micro-batches", "4"]),
    ]),
    "llama": (LLAMA, [
        (["*:pp=2,zero3=8", "llama_decoder_layer[0-2]:pp=2,zero3=4,tp=2"], ["--micro-batches", "2"]),
        (["*:pp=2,dp=2,zero2=2,sp=2"], ["--memory-actions", "offload 50%"]),
        (["*:zero3=8,cp=2"], ["--memory-actions", "recompute"]),
        (["*:dp=16"], ["--compress", "sdp4bit"]),
    ]),
    "mixtral": (MIXTRAL, [
        (["*:zero3=4,ep=4"], []),
        (["*:pp=2,ep=4,tp=2,sp"], ["--micro-batches", "2", "--memory-actions", "recompute"]),
    ]),
    "t5": (T5, [
        (["*:pp=2,zero3=8"], ["--micro-batches", "2"]),
        (["*:dp=8,tp=2", "t5_block[0-1]:zero3=16"], []),
    ]),
}
# fmt: on


@pytest.mark.long
@pytest.mark.ranks
@pytest.mark.parametrize("name", LONG)
def test_plans_of_many_kinds_are_verified(name, tmp_path, capsys):
    config, cases = LONG[name]
    for pins, more in cases:
        plan_file, source = planned(tmp_path, config, pins, *more)
        capsys.readouterr()
        assert verified(plan_file, source, "--json") == 0, (pins, more)
        report = json.loads(capsys.readouterr().out)
        assert report["passed"]
        lost = set(report["scale"]["not_covered"]) - {"compression"}
        plan = load_plan(plan_file)
        roles = {role for strategy in plan.strategies for role, n in strategy.axes if n > 1}
        assert lost < roles, report["scale"]
        assert (report["scale"]["micro_batches"][1] > 1) == (plan.micro_batches > 1)
