"""Half precision trains what full precision trains: master weights, gradient sums, loss scaling."""

import json

import pytest
import torch

from plait.ir.errors import NonFiniteError
from plait.runtime.state.gradients import GROWTH_INTERVAL, LossScale
from plait.tests.ranks import launch
from plait.tests.runtime.state import precision_worker as worker

FP32 = {"gradient_precision": "fp32"}


def run(folder, jobs):
    """What both ranks give for the calls of `jobs`, one after the other in one launch."""
    todo = folder / "jobs.json"
    todo.write_text(json.dumps(jobs))
    launch(2, [worker.__file__, str(todo)], timeout_seconds=300)
    return [json.loads(todo.with_suffix(f".{rank}.json").read_text()) for rank in (0, 1)]


def worst(losses, expected):
    return max(abs(a - b) for a, b in zip(losses, expected, strict=True))


def check_losses(jobs, results) -> None:
    """Programs are as far from float32 as one process under autocast is."""
    exact, _ = worker.eager(worker.adamw(1e-2), 20)
    noise = {
        name: worst(worker.eager(worker.adamw(1e-2), 20, dtype)[0], exact)
        for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))
    }
    for (layout, precision, options), (row, other) in zip(jobs, results, strict=True):
        assert row == other
        error = worst(row["losses"], exact)
        assert error <= 1.5 * noise[precision], (layout, precision, options, error, noise)
        assert row["steps"] == 20
        assert row["scale"] == (2.0**16 if precision == "fp16" else None)


@pytest.mark.long
@pytest.mark.ranks
def test_losses_under_every_layout(tmp_path) -> None:
    jobs = [(x, p, o) for x in worker.LAYOUTS for p in ("bf16", "fp16") for o in ({}, FP32)]
    ranks = run(tmp_path, [("losses", job[:2], job[2]) for job in jobs])
    check_losses(jobs, zip(*ranks, strict=True))


LOSSES = [("pp=2", "fp16", {}), ("dp=2 in two", "bf16", FP32)]
BYTES = [("dp=2", "own bf16", {}), ("zero2=2", "fp16", {}), ("zero3=2", "bf16", FP32)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All calls of the tests below in one launch: results of both ranks, by call."""
    folder = tmp_path_factory.mktemp("ranks")
    calls = [
        *(("losses", job[:2], job[2]) for job in LOSSES),
        *(("moved", (layout,), {}) for layout in worker.LAYOUTS if layout in ("zero1=2", "pp=2")),
        *(("weights_and_states", job[:2], job[2]) for job in BYTES),
        ("overflow", ("pp=2", str(folder / "saved")), {}),
    ]
    rows: dict[str, list] = {}
    for call, *ranks in zip(calls, *run(folder, calls), strict=True):
        rows.setdefault(call[0], []).append(ranks)
    return rows


@pytest.mark.ranks
def test_losses_are_those_of_one_process_within_rounding(results) -> None:
    check_losses(LOSSES, results["losses"])


@pytest.mark.ranks
def test_small_steps_move_every_weight_that_one_process_moves(results) -> None:
    for row, _ in results["moved"]:
        assert row == {"still": {}, "types": ["torch.float32"]}


@pytest.mark.ranks
def test_a_plans_bytes_are_the_programs(results) -> None:
    """Parameters, master weights and states in bytes, and the gradients that the optimizer gets."""
    for job, rows in zip(BYTES, results["weights_and_states"], strict=True):
        for row in rows:
            assert row["promised"] == pytest.approx(row["actual"], rel=0.01), job
            assert row["gradients"] == row["stepped"], job


@pytest.mark.ranks
def test_an_overflow_skips_the_step_on_all_ranks(results) -> None:
    ((row, other),) = results["overflow"]
    assert row == other
    assert row["skipped"]
    assert row["scale"] < 2.0**36
    assert row["loaded"] == [row["scale"], 2]
    assert max(row["differences"]) < 1e-2


def test_the_scale_grows_after_many_steps_and_has_an_end() -> None:
    scale = LossScale()
    for _ in range(GROWTH_INTERVAL):
        scale.update(finite=True)
    assert (scale.value, scale.steps) == (2.0**17, 0)
    for _ in range(33):
        scale.update(finite=False)
    with pytest.raises(NonFiniteError, match=r"at a loss scale of \S+ still"):
        scale.update(finite=False)
