"""What a generated program looks like: readable, clean, and no longer for a deeper model."""

import ast
import json
import subprocess
import sys

import pytest

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.errors import MismatchError
from plait.ir.files.json_files import dump, load
from plait.ir.plan.plan import Plan
from plait.ir.plan.program import ProgramTable
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.tests import zoo


def program(layers: int, schedule: str = "1f1b"):
    module, batch = zoo.llama(layers)
    model = trace(module.train(), batch)
    options = PlanOptions(
        pins=pin_all("pp=2,tp=2"), memory_actions=("keep",), micro_batches=4, schedule=schedule
    )
    made = plan(model, load_cluster("local:4"), options)
    return made, model, compile_program(made, model)


def size(made) -> int:
    """Characters of code and of the table that it runs by."""
    code = sum(len(text) for name, text in made.files if name.endswith(".py"))
    return code + len(dump(made.table, "plait/program"))


def test_depth_adds_no_code():
    assert size(program(12)[2]) <= 1.01 * size(program(4)[2])


@pytest.mark.long
def test_chunks_of_a_stage_add_code_and_depth_does_not():
    deep, shallow = program(64, "interleaved"), program(32, "interleaved")
    per_chunk = [size(compiled) / made.chunks_per_stage for made, _, compiled in (deep, shallow)]
    assert per_chunk[0] <= 1.02 * per_chunk[1]


def test_it_passes_ruff_and_names_layer_strategy_and_time(tmp_path):
    _, _, program_files = program(4)
    write_program(program_files, tmp_path)
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", str(tmp_path)]
    done = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    stage = dict(program_files.files)["stage_0.py"]
    for text in ("model.layers.0", "pp=2,tp=2", "forward", " ms"):
        assert text in stage


def test_plan_and_table_survive_their_files():
    decided, _, made = program(4)
    assert load(dump(decided, "plait/plan"), Plan, "plait/plan") == decided
    assert load(dump(made.table, "plait/program"), ProgramTable, "plait/program") == made.table


def test_the_same_inputs_give_the_same_bytes():
    one, two = program(4), program(4)
    assert dump(one[0], "plait/plan") == dump(two[0], "plait/plan")
    assert one[2].files == two[2].files


def test_a_plan_for_another_model_is_refused():
    decided, _, _ = program(4)
    module, batch = zoo.gpt2(4)
    with pytest.raises(MismatchError):
        compile_program(decided, trace(module, batch))


def test_hostile_module_names_stay_data(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    evil = 'a", None) or open("canary", "w") or getattr(self, "b'

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            parts = {name: torch.nn.Linear(8, 8) for name in (evil, "x\n y", "class", "é")}
            self.parts = torch.nn.ModuleDict(parts)

        def forward(self, x):
            for part in self.parts.values():
                x = part(x)
            return x.square().mean()

    model = trace(Model(), (torch.randn(8, 8),))
    made = plan(model, load_cluster("local:2"), PlanOptions(pins=pin_all("dp=2")))
    built = compile_program(made, model, json.dumps({"source": evil}))
    for name, text in built.files:
        if name.endswith(".py"):
            ast.parse(text)
            assert 'open("canary"' not in text
    assert not canary.exists()
