"""Collectives beside other work change when they run, and no bit of what they give."""

import json
from pathlib import Path

import pytest

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.lowering.overlap import Overlap
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.tests.codegen.sources import sourced
from plait.tests.ranks import launch

WORKER = Path(__file__).with_name("overlap_worker.py")
CASES = {  # by ranks: strategies, and what they start
    2: {"zero3=2": "all_gather", "dp=2": "all_reduce"},
    4: {
        "dp=4": "all_reduce",
        "zero1=4": "reduce_scatter",
        "zero2=4": "reduce_scatter",
        "zero3=4": "all_gather",
        "dp=2,zero1=2": "reduce_scatter",
        "zero3=2@1/2,dp=2": "reduce_scatter",
        "dp=2,tp=2": "all_reduce",
        "tp=4,sp": "all_reduce",
        "pp=2,zero3=2": "all_gather",
    },
}


def jobs(ranks, folder):
    model, source, _ = sourced("llama", folder, "4, seq=16")
    for number, strategy in enumerate(CASES[ranks]):
        options = PlanOptions(pins=pin_all(strategy), micro_batches=2, memory_actions=("keep",))
        planned = plan(model, load_cluster(f"local:{ranks}"), options)
        folders = []
        for limit_bytes in (2**20, 0):
            place = folder / f"{number}_{limit_bytes}"
            program = compile_program(planned, model, overlap=Overlap(limit_bytes))
            write_program(program, place)
            folders.append(str(place))
        yield {"name": strategy, "source": source, "folders": folders}


@pytest.mark.ranks
@pytest.mark.long
@pytest.mark.parametrize("ranks", [2, 4])
def test_programs_give_the_same_bits_with_and_without_overlap(ranks, tmp_path):
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps([*jobs(ranks, tmp_path)]))
    for output in launch(ranks, [str(WORKER), str(file)], timeout_seconds=300):
        for name, verdict in json.loads(output.splitlines()[-1]).items():
            assert verdict["same"], name
            assert CASES[ranks][name] in verdict["beside"], (name, verdict["beside"])
