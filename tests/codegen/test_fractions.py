"""A part of every weight in shards, the rest on every rank: such programs on 2 and 4 gloo ranks."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from plait.codegen import compile_program, write_program
from plait.cost_model.explain.step_terms import step_term
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.ir.files.json_files import dump
from plait.ir.lowering.cast import cast_model
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import parse_pin, pin_all
from plait.runtime.verification.verify import Job, verify
from plait.tests.codegen.sources import Sourced, sourced
from plait.tests.paths import LLAMA
from plait.tests.ranks import launch

WORKER = Path(__file__).with_name("fractions_worker.py")
ODD = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(9, 23), nn.Linear(23, 9), nn.LayerNorm(9)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.scale = nn.Embedding(31, 9), nn.Parameter(torch.ones(()))
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(9, 31)
        self.frozen = nn.Parameter(torch.randn(31), requires_grad=False)

    def forward(self, tokens, labels):
        x = self.embed(tokens) * self.scale
        for block in self.blocks:
            x = block(x)
        logits = self.head(x) + self.frozen
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}

def make():
    tokens = torch.randint(0, 31, (8, 5))
    return Odd(), {"tokens": tokens, "labels": tokens}
"""
# fmt: off
CASES = {  # ranks and model, then pins
    (2, "gpt2"): ("zero3=2@1/2", "zero3=2;transformer.h.*:zero3=2@1/4", "dp=2;e*:zero3=2@3/4"),
    (2, "odd"): ("zero3=2@1/2", "zero3=2@5/7"),
    (4, "odd"): ("zero3=4@1/4", "zero3=4@5/7", "dp=2,zero3=2@1/2", "dp=4;blocks.1:zero3=4@3/4"),
    (4, "llama"): (
        "dp=2,zero3=2@1/2", "zero3=2@3/4,tp=2", "pp=2,zero3=2@1/3", "zero3=4@1/4",
        "zero3=2@1/2,tp=2,sp", "zero3=4;model.layers.[0-1]:zero3=4@1/2;model.layers.2:dp=2,tp=2",
    ),
    (4, "gpt2"): ("zero3=4@3/4", "pp=2,zero3=2@1/2"),
}
# fmt: on


def odd(folder: Path) -> Sourced:
    """A model of which hardly a size is even."""
    (folder / "odd.py").write_text(ODD)
    source = load_source(f"{folder / 'odd.py'}:make")
    model = cast_model(trace(source.model, source.batch), "float64")
    (folder / "odd.json").write_bytes(dump(model, "plait/model"))
    return Sourced(model, f"{folder / 'odd.py'}:make", str(folder / "odd.json"))


def compiled(made_from: Sourced, ranks: int, strategy_text: str, folder: Path) -> Job:
    pins = tuple(parse_pin(part) for part in strategy_text.split(";"))
    micro = 2 if "pp" in strategy_text or len(pins) > 1 else 1
    plan_made = plan(
        made_from.model, load_cluster(f"local:{ranks}"), PlanOptions(pins=pins, micro_batches=micro)
    )
    assert any(strategy.fraction != (1, 1) for strategy in plan_made.strategies)
    write_program(compile_program(plan_made, made_from.model), folder)
    return Job(strategy_text, str(folder), made_from.source, made_from.file, steps=3)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    found = {name: sourced(name, folder, "3, seq=16") for name in ("gpt2", "llama")}
    return {**found, "odd": odd(folder)}


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("share", [6, pytest.param(1, marks=pytest.mark.long)])
def test_they_compute_what_one_process_computes(ranks, share, models, tmp_path):
    """By default the first of every six strategies of a model."""
    jobs = [
        compiled(models[name], ranks, strategy_text, tmp_path / f"{name}_{i}")
        for (count, name), strategies in CASES.items()
        if count == ranks
        for i, strategy_text in enumerate(strategies)
        if i % share == 0
    ]
    for verdict in verify(jobs, ranks, 600):
        assert verdict.passed, str(verdict)


LADDER = ("zero3=4", "zero3=4@1/2", "dp=4")  # ever more memory
OTHERS = ("zero3=2@1/2,tp=2",)
MOVES = ("zero3=4@1/2", "dp=4", "zero3=4", "zero3=2@1/2,tp=2", "zero3=4@1/2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, llama):
    folder = tmp_path_factory.mktemp("trained")
    jobs, plans = [], {}
    for number, strategy_text in enumerate((*LADDER, *OTHERS)):
        options = PlanOptions(
            pins=pin_all(strategy_text), memory_actions=("keep",), micro_batches=1
        )
        plans[strategy_text] = plan(llama, load_cluster("local:4"), options)
        write_program(compile_program(plans[strategy_text], llama), folder / str(number))
        jobs.append({"name": strategy_text, "source": LLAMA, "folder": str(folder / str(number))})
    (folder / "jobs.json").write_text(json.dumps({"jobs": jobs, "moves": MOVES}))
    out = folder / "out.json"
    launch(4, [str(WORKER), str(folder / "jobs.json"), str(out)], timeout_seconds=600)
    return plans, json.loads(out.read_text())


@pytest.mark.ranks
def test_a_checkpoint_keeps_its_bits_under_every_fraction(trained):
    for row in trained[1]:
        assert row["moved"]["same"] == [True] * (len(MOVES) - 1)
        assert row["moved"]["tensors"] > 100
        assert row["moved"]["losses"] == row[MOVES[0]]["losses"][3:]


@pytest.mark.ranks
def test_copies_stay_equal_and_losses_are_those_of_other_strategies(trained):
    plans, rows = trained
    for strategy_text in (*LADDER, *OTHERS):
        assert rows[0][strategy_text]["losses"] == pytest.approx(
            rows[0]["dp=4"]["losses"], rel=1e-5
        ), strategy_text
        mesh = plans[strategy_text].mesh
        if "@" in strategy_text:
            for group in mesh.groups((mesh.index("zero3"),)):
                assert len({rows[rank][strategy_text]["copies"] for rank in group}) == 1, (
                    strategy_text
                )


@pytest.mark.ranks
def test_what_is_sent_is_what_the_plan_says(trained):
    plans, rows = trained
    for strategy_text in (*LADDER, *OTHERS):
        predicted = sum(map(sent_bytes, step_term(plans[strategy_text]).leaves()))
        assert rows[0][strategy_text]["sent"] == pytest.approx(predicted, rel=1e-3), strategy_text


def sent_bytes(term):
    """Bytes that a rank sends for a collective, as a ring does."""
    n, whole, ranks = (term.symbols.get(name, 0) for name in ("n", "N", "p"))
    return n * whole * (ranks - 1) / ranks * (1 + ("all_reduce" in term.name)) if ranks else 0


@pytest.mark.ranks
def test_memory_lies_between(trained):
    plans, rows = trained
    for before, after in pairwise(LADDER):
        assert plans[before].peak_bytes < plans[after].peak_bytes
        assert rows[0][before]["kept"] < rows[0][after]["kept"]
    parameter_bytes = dict(plans["zero3=4@1/2"].stages[0].memory_terms)["parameters"]
    assert rows[0]["zero3=4@1/2"]["kept"] == pytest.approx(parameter_bytes, rel=1e-3)
