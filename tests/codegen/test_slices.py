"""Weights that products gather in slices: such programs on 4 gloo ranks against one process."""

import pytest

from plait.benchmarks import peak
from plait.benchmarks.peak import Variant
from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.lowering.products import slices
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import parse_pin
from plait.runtime.verification.verify import Job, verify
from plait.tests import ranks
from plait.tests.codegen.sources import sourced

CASES = (  # model, pins, micro-batches, memory action
    ("gpt2", "slice=4", 1, "recompute"),
    ("gpt2", "zero3=4;transformer.h.*:slice=4", 2, "keep"),
    ("llama", "dp=2,slice=2", 2, "recompute"),
    ("llama", "pp=2,slice=2", 2, "keep"),
    ("llama", "tp=2,slice=2", 1, "keep"),
    ("llama", "slice=2,tp=2", 1, "keep"),
    ("llama", "slice=4", 1, "split 2"),
    ("llama", "slice=4;model.layers.1:dp=2,slice=2;model.layers.2:zero3=4", 1, "save 50%"),
)


@pytest.mark.ranks
@pytest.mark.long
def test_they_compute_what_one_process_computes(tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "SLICE_BYTES", 4096)
    models = {name: sourced(name, tmp_path, "3, seq=16") for name in ("gpt2", "llama")}
    jobs = []
    for number, (name, pins, micro_batches, memory) in enumerate(CASES):
        options = PlanOptions(
            pins=tuple(map(parse_pin, pins.split(";"))),
            micro_batches=micro_batches,
            memory_actions=(memory,),
        )
        program = plan(models[name].model, load_cluster("local:4"), options)
        folder = tmp_path / str(number)
        write_program(compile_program(program, models[name].model), folder)
        assert ".place(" in "".join(p.read_text() for p in folder.glob("functions/*.py"))
        jobs.append(Job(pins, str(folder), models[name].source, models[name].file, steps=3))
    for verdict in verify(jobs, 4, 600):
        assert verdict.passed, str(verdict)


@pytest.mark.ranks
@pytest.mark.long
def test_ranks_hold_half_of_what_zero3_holds(tmp_path, monkeypatch):
    """Live bytes of two steps, on the fuller of two ranks; and no more than the plan promised."""
    monkeypatch.setattr(slices, "SLICE_BYTES", 65536)
    monkeypatch.setattr(peak, "launch", ranks.launch)
    variants = [Variant(text, 1, "recompute", "sgd", batch=2) for text in ("zero3=2", "slice=2")]
    whole, sliced = peak.rows(["wide"], variants, tmp_path)
    assert sliced.measured.peak < whole.measured.peak / 2
    assert sliced.measured.peak <= sliced.promised
