"""Programs of 16 bits against the eager module in 16 bits: what is lost beyond rounding is seen."""

from pathlib import Path

import pytest
import torch

import plait
from plait.api.formats import files
from plait.api.formats.model_source import ModelSource
from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.ir.lowering.cast import cast_model, in_precision
from plait.ir.model.model import Model
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.verification import verify as verification
from plait.runtime.verification.half_precision import in_half
from plait.runtime.verification.training import OPTIMIZERS, Training
from plait.runtime.verification.verify import Job, verify
from plait.tests.ranks import launch
from plait.tests.runtime.state import precision_worker as worker

SOURCE = ModelSource(f"{worker.__file__}:make")


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    """The model traced in its own type, as a file has it, and in bfloat16."""
    own = SOURCE.load()
    return {"own": own, "file": SOURCE.with_half(own), "bf16": SOURCE.load(precision="bf16")}


def test_a_file_has_the_casts_to_the_models_own_type(models, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    files.write(path, models["file"], "plait/model")
    source = ModelSource(str(path))
    assert source.load() == models["file"]
    assert source.load(precision="bf16") == models["bf16"]
    assert source.load(16, "bf16") == SOURCE.load(16, "bf16")
    assert source.load(precision="fp16") == SOURCE.load(precision="fp16")
    assert in_precision(models["own"], "bf16") != models["bf16"]
    assert source.load_for(None, "bf16", models["bf16"].fingerprint()) == models["bf16"]


def test_a_traced_model_is_planned_in_half_precision_with_its_casts(models) -> None:
    traced = plait.trace(*worker.make())
    assert in_precision(traced, "bf16") == models["bf16"]
    planned = plait.plan(traced, cluster="local:1", precision="bf16")
    assert planned.model_digest == models["bf16"].fingerprint()


def test_a_buffer_that_is_read_in_its_own_type_keeps_it(models) -> None:
    assert models["bf16"].parameter("rates").type.dtype == "float32"
    assert models["bf16"].parameter("embedding.weight").type.dtype == "bfloat16"


def test_one_process_steps_on_master_weights() -> None:
    training = Training(*OPTIMIZERS["adamw"], 2, 0)
    source = load_source(SOURCE.source)
    model, batch = worker.make()
    object.__setattr__(source, "model", model)
    object.__setattr__(source, "batch", batch)
    trained = in_half(lambda: source, SOURCE.load(), training, torch.bfloat16)
    assert model.layers[0].up.weight.dtype == torch.bfloat16
    weight = trained.state["layers.0.up.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight.bfloat16(), model.layers[0].up.weight)
    assert model.rates.dtype == torch.float32
    assert "head.weight" in trained.state


class Positions(worker.Language):
    """Also with a table of positions, which has to be of the type of what it is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(12, worker.WIDTH))
        self.head = torch.nn.Linear(worker.WIDTH, worker.VOCABULARY)

    def forward(self, ids, places, labels):
        turn = (places[..., None].float() * self.rates.float()).cos().to(self.table.dtype)
        x = self.layers[0](self.embedding(ids) + self.table, turn)
        return torch.nn.functional.cross_entropy(
            self.head(x).float().flatten(0, 1), labels.flatten()
        )


def test_only_buffers_that_must_be_are_converted() -> None:
    built = []

    def build():
        source = load_source(SOURCE.source)
        object.__setattr__(source, "batch", worker.make()[1])
        object.__setattr__(source, "model", Positions())
        built.append(source.model)
        return source

    source = build()
    training = Training(*OPTIMIZERS["sgd"], 1, 0)
    in_half(build, trace(source.model, source.batch), training, torch.bfloat16)
    assert built[-1].table.dtype == torch.bfloat16
    assert built[-1].rates.dtype == torch.float32


@pytest.mark.ranks
def test_lost_casts_and_lost_precision_are_seen(models, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(verification, "launch", launch)
    files.write(tmp_path / "model.json", cast_model(models["own"], "float64"), "plait/model")

    def job(name: str, model: Model, strategy: str, precision: str) -> Job:
        options = PlanOptions(pins=pin_all(strategy), precision=precision, micro_batches=2)
        made = plan(model, load_cluster("local:2"), options)
        write_program(compile_program(made, model), tmp_path / name)
        file = str(tmp_path / "model.json")
        return Job(name, str(tmp_path / name), SOURCE.source, file, precision=precision)

    jobs = [
        job("zero1", models["bf16"], "zero1=2", "bf16"),
        job("pp", in_precision(models["file"], "fp16"), "pp=2", "fp16"),
        job("lost", in_precision(models["own"], "bf16"), "dp=2", "bf16"),
    ]
    zero1, pp, lost = verify(jobs, 2, timeout_seconds=120)
    assert zero1.passed, zero1
    assert pp.passed, pp
    assert not lost.failure
    assert not lost.passed, lost
