"""Tables with gradients of the rows that a step reads: such programs train what one process trains."""

import json
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from plait.codegen import compile_program, write_program
from plait.codegen.table import plan_table
from plait.cost_model.explain.step_terms import step_term
from plait.cost_model.hardware import load_cluster
from plait.ir.analysis.row_gradients import sparse_gradients
from plait.ir.capture import load_source, trace
from plait.ir.errors import MismatchError, UsageError
from plait.ir.files.json_files import dump
from plait.ir.lowering.cast import cast_model
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import parse_pin
from plait.runtime.state.optimizer import OptimizerRequest, contract_of
from plait.runtime.verification.verify import Job, verify
from plait.tests.paths import EXAMPLES
from plait.tests.ranks import launch

DLRM = EXAMPLES / "dlrm.py"
WORKER = Path(__file__).with_name("row_gradients_worker.py")
TABLES = {f"tables.{i}.weight" for i in range(3)}
ON_HOST = ", on the host"  # is where the optimizer steps
PINS = (
    "*:dp=4;tables.*:tp=4",
    "zero3=4@1/2",
    "pp=2,dp=2",
    "tp=2,zero1=2",
    "*:dp=4;tables.0:zero3=4;tables.1:tp=4;tables.2:dp=2,zero2=2",
    f"*:zero1=4;tables.*:tp=4{ON_HOST}",
    "*:dp=4;tables.*:rows=4",
    "dp=2,rows=2",
    "pp=2,rows=2",
    "rows=2,tp=2",
)


class Tied(nn.Module):
    """A table that is looked up twice, and one that is a matrix as well."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Embedding(30, 4, sparse=True, padding_idx=0)
        self.matrix = nn.Embedding(30, 4, sparse=True)

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        x = self.twice(one) * self.twice(other) + self.matrix(one)
        return (x @ self.matrix.weight.T).logsumexp(-1).mean()


def planned(pins: str, model):
    strategies, place = pins.removesuffix(ON_HOST), "host" if pins.endswith(ON_HOST) else "device"
    parsed = tuple(map(parse_pin, strategies.split(";")))
    micro_batches = 2 if "pp" in pins else 1
    options = PlanOptions(pins=parsed, micro_batches=micro_batches, optimizer_on=place)
    return plan(model, load_cluster("local:4"), options)


def test_rows_are_read_priced_and_stepped() -> None:
    tokens = torch.randint(0, 30, (4, 5))
    tied = trace(Tied(), (tokens, tokens))
    assert sparse_gradients(tied) == {"twice.weight"}
    assert planned("dp=2,tp=2", tied).stages[0].bytes_by_strategy[0].bytes.row_bytes
    source = load_source(f"{DLRM}:make")
    model = trace(source.model, source.batch)
    assert sparse_gradients(model) == TABLES
    chosen = planned("dp=4", model)
    specs = {s.names()[0]: s for s in plan_table(chosen, model).state_tensors}
    assert {name for name, spec in specs.items() if spec.sparse_gradient} == TABLES
    whole = sum(specs[name].type.bytes for name in TABLES)
    assert dict(chosen.stages[0].memory_terms)["gradients"] < whole / 4
    assert step_term(chosen).value == pytest.approx(chosen.prediction.step_seconds)
    apart = planned("rows=4", model)
    layouts = {s.names()[0]: s.layout for s in plan_table(apart, model).state_tensors}
    assert {layouts[name] for name in TABLES} == {((0, 0),)}
    sends = [c for x in apart.layers for c in x.forward.collectives if c.kind == "all_to_all"]
    assert {c.axis for c in sends} == {"rows"}
    with pytest.raises(UsageError, match="does not divide"):
        planned("rows=4", tied)
    with pytest.raises(MismatchError, match="1-bit-adam sums gradients of all rows"):
        plan_table(replace(chosen, optimizer=replace(chosen.optimizer, name="1-bit-adam")), model)


def test_a_probe_gives_rows_to_optimizers_that_ask_for_them() -> None:
    named = [("table", nn.Parameter(torch.randn(9, 4)))]
    request = OptimizerRequest(torch.optim.SparseAdam, {})
    assert contract_of(request, named, {"table"}).demand == "elementwise"
    assert "does not support dense" in contract_of(request, named).evidence


@pytest.mark.ranks
@pytest.mark.long
def test_they_train_what_one_process_trains(tmp_path) -> None:
    source = load_source(f"{DLRM}:make")
    model = cast_model(trace(source.model, source.batch), "float64")
    file = tmp_path / "model.json"
    file.write_bytes(dump(model, "plait/model"))
    jobs = []
    for number, pins in enumerate(PINS):
        folder = tmp_path / str(number)
        write_program(compile_program(planned(pins, model), model), folder)
        optimizer = f"{DLRM}:optimizer"
        jobs.append(Job(pins, str(folder), f"{DLRM}:make", str(file), steps=3, optimizer=optimizer))
    for verdict in verify(jobs, 4, 600):
        assert verdict.passed, str(verdict)


@pytest.mark.ranks
@pytest.mark.long
def test_rows_that_no_batch_reads_keep_their_bits(tmp_path) -> None:
    """Also where batches of another size have tables in other shards."""
    launch(2, [str(WORKER), str(tmp_path / "out.json")], timeout_seconds=300)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["moved"] == found["read"]
    assert found["error"] < 1e-5
