"""Programs of placements: whatever runs where, a step is the step of one process."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from plait.codegen import write_program
from plait.codegen.placement import compile_placement
from plait.codegen.placement.actions import ReceiveTensor, RunUnit, SendTensor, rank_actions
from plait.codegen.placement.assignment import assign
from plait.ir.capture import materialize, trace
from plait.ir.capture.execute import constant, execute
from plait.ir.errors import MismatchError, UsageError
from plait.ir.files.json_files import dump
from plait.ir.lowering.cast import cast_model
from plait.ir.model.model import Op
from plait.runtime.verification.verify import Job, verify
from plait.tests.codegen import random_models
from plait.tests.codegen.placed import compiled, random_placement, run_ranks
from plait.tests.paths import EXAMPLES
from plait.tests.sampling import some


def close(made: torch.Tensor, expected: torch.Tensor) -> bool:
    size = max(1.0, float(expected.abs().max()))
    return made.shape == expected.shape and float((made - expected).abs().max()) <= 1e-12 * size


def wide(seed: int, dropout: bool = False):
    """A random model in float64: module, batch and its trace."""
    torch.manual_seed(seed)
    module, batch = random_models.make(seed, dropout)
    module, batch = module.double(), batch | {"x": batch["x"].double()}
    return module, batch, cast_model(trace(module, batch), "float64")


def state_tensors_of(module, model) -> dict[str, torch.Tensor]:
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    constants = {
        p.name: constant(p.values, p.type) for p in model.parameters if p.kind == "constant"
    }
    return {n: t.detach().clone() for n, t in tensors.items()} | constants


def eager(module, batch):
    loss = module(**batch)
    loss.backward()
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, dict(module.named_buffers())


def check(seed: int) -> None:
    dropout, ranks = seed % 4 == 3, 2 + seed % 3
    module, batch, model = wide(seed, dropout)
    state_tensors = state_tensors_of(module, model)
    results = run_ranks(compiled(model, ranks, seed), state_tensors, batch)
    if dropout:  # torch would draw other numbers than ours
        expected = execute(model, state_tensors, list(batch.values()))
    else:
        expected = eager(module, batch)
    assert close(results[0], expected[0])
    assert results[1].keys() == expected[1].keys()
    assert all(close(g, expected[1][n]) for n, g in results[1].items())
    assert all(close(b, expected[2][n]) for n, b in results[2].items())


@pytest.mark.parametrize("seed", some(range(24), 3))
def test_a_random_model_placed_at_random_computes_what_autograd_does(seed):
    check(seed)


@pytest.mark.long
def test_many_random_models_placed_at_random():
    for seed in range(1000, 1400):
        check(seed)


def small_model(seed: int = 0):
    return wide(seed)[2]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_both_ends_of_a_transfer_stand_in_one_order(ranks):
    for seed in range(6):
        model = small_model(seed)
        assigned = assign(random_placement(model, ranks, seed), model)
        lists = rank_actions(assigned)
        for a in range(ranks):
            for b in range(ranks):
                sent = [x.value for x in lists[a] if isinstance(x, SendTensor) and x.target == b]
                received = [
                    x.value for x in lists[b] if isinstance(x, ReceiveTensor) and x.source == a
                ]
                assert sent == received
                assert len(set(sent)) == len(sent), "a tensor goes to a rank once"
        ran = [x.unit for todo in lists for x in todo if isinstance(x, RunUnit)]
        assert sorted(ran) == list(range(len(assigned.units)))


def test_a_tensor_lives_on_one_rank_and_a_tied_one_under_all_its_names():
    model = small_model()
    table = compiled(model, 3, 0).table
    assert all(len(h.stages) == 1 for h in table.state_tensors)
    tied = next(h for h in table.state_tensors if h.aliases)
    assert {tied.name, *tied.aliases} == {"linears.0.weight", "linears.2.weight"}


def test_what_cannot_be_compiled_is_refused_with_the_reason():
    model = small_model()
    placement = random_placement(model, 2, 0)
    with pytest.raises(MismatchError, match="placed as a graph"):
        compile_placement(replace(placement, model_digest=""), model)
    with pytest.raises(MismatchError, match="this model is"):
        compile_placement(placement, small_model(1))
    with pytest.raises(MismatchError, match="global batch of 7"):
        compile_placement(replace(placement, global_batch=7), model)
    update = next(n for n in placement.graph.nodes if n.name.endswith(": update"))
    elsewhere = {str(update.id): 1 - placement.device[str(update.id)]}
    with pytest.raises(MismatchError, match="must be updated where it lies"):
        compile_placement(replace(placement, device=placement.device | elsewhere), model)
    nodes = (replace(placement.graph.nodes[0], name="other"), *placement.graph.nodes[1:])
    with pytest.raises(MismatchError, match="place the model again"):
        compile_placement(replace(placement, graph=replace(placement.graph, nodes=nodes)), model)


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("aten.add_.Tensor", "writes into its operands"),
        ("aten.as_strided.default", "depends on the strides"),
        ("aten.rand_like.default", "draws from the process's random generator"),
    ],
)
def test_an_operator_that_needs_its_process_is_refused(target, what):
    model = small_model()
    function = next(f for f in model.functions if f.forward)
    ops = tuple(
        Op(target, op.args, {}, op.results, op.scope) if n == 0 else op
        for n, op in enumerate(function.ops)
    )
    broken = replace(
        model, functions=tuple(replace(f, ops=ops) if f is function else f for f in model.functions)
    )
    with pytest.raises(UsageError, match=what):
        compile_placement(random_placement(broken, 2, 0), broken)


def job(name: str, source: str, folder: Path, ranks: int, seed: int) -> Job:
    """A program of a random placement of a SOURCE, to be verified."""
    made = materialize(source)
    model = cast_model(trace(made.model, made.batch), "float64")
    file = folder / f"{name}.json"
    file.write_bytes(dump(model, "plait/model"))
    write_program(compile_placement(random_placement(model, ranks, seed), model), folder / name)
    return Job(name, str(folder / name), source, str(file), steps=2, seed=seed)


def random_source(folder: Path, seed: int) -> str:
    file = folder / f"random_{seed}_source.py"
    file.write_text(
        "from plait.tests.codegen import random_models\n"
        f"def make():\n    return random_models.make({seed}, {seed % 2 == 1})\n"
    )
    return f"{file}:make"


def spoiled(result: Job, folder: Path) -> Job:
    """A copy of a program in which products of matrices on one rank are twice as large."""
    shutil.copytree(result.folder, folder)
    file = next(f for f in folder.glob("rank_*.py") if "aten.mm.default(" in f.read_text())
    text = re.sub(r"aten\.mm\.default\((.*)\)", r"2 * aten.mm.default(\1)", file.read_text())
    file.write_text(text)
    return replace(result, name=folder.name, folder=str(folder))


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("ranks", "name", "seed"),
    [  # seeds with norms, dropout, empty tensors
        (4, "inception_like", 205),
        pytest.param(2, "two_tower", 213, marks=pytest.mark.long),
    ],
)
def test_placements_at_random_compute_what_one_process_computes(ranks, name, seed, tmp_path):
    jobs = [job(name, f"{EXAMPLES / name}.py:make", tmp_path, ranks, 5)]
    jobs.append(job(f"random_{seed}", random_source(tmp_path, seed), tmp_path, ranks, seed))
    wrong = spoiled(jobs[-1], tmp_path / "spoiled")
    *verdicts, last = verify([*jobs, wrong], ranks, 120)
    for verdict in verdicts:
        assert verdict.passed, str(verdict)
    assert not last.failure
    assert not last.passed
