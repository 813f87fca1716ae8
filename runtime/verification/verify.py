"""Runs programs on gloo ranks and compares them with training in one process, in float64."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ...ir.errors import VerifyError
from ..launch.launch import LaunchError, launch

if TYPE_CHECKING:
    from torch import Tensor

    from ...ir.capture import Source
    from ..comm.process_group import GroupPool
    from .reference import Reference

TOLERANCE = 1e-9
# Errors of tensors that are nearly zero are taken against this part of the largest tensor of all:
# some gradients (a key's bias in attention) are exactly zero but for rounding.
GRADIENT_FLOOR = 1e-4


class Job(msgspec.Struct, frozen=True):
    """One program to verify: its folder, where its module comes from, and its traced model.

    The program and `model` (a file) are of float64: see `ir.precision.lift_dtypes`.
    """

    name: str
    folder: str
    source: str
    model: str
    batch: int | None = None
    seq: int | None = None
    steps: int = 2
    seed: int = 0


class Verdict(msgspec.Struct, frozen=True):
    """How far a program is from one process: largest relative errors, and the tensor with each.

    `failure` is empty, or the error of a failed run.
    """

    name: str
    loss: float = math.inf
    gradient: float = math.inf
    gradient_of: str = ""
    parameter: float = math.inf
    parameter_of: str = ""
    seconds: float = 0.0
    failure: str = ""

    @property
    def passed(self) -> bool:
        worst = max(self.loss, self.gradient, self.parameter)
        return not self.failure and worst <= TOLERANCE

    def require(self) -> Verdict:
        """Itself, or VerifyError naming the worst tensor."""
        if not self.passed:
            raise VerifyError(str(self))
        return self

    def __str__(self) -> str:
        if self.failure:
            return f"{self.name}: the program failed: {self.failure}"
        verdict = "agrees with one process" if self.passed else "DIFFERS from one process"
        return (
            f"{self.name}: {verdict} (relative errors: loss {self.loss:.1e}, gradients "
            f"{self.gradient:.1e} at {self.gradient_of}, parameters {self.parameter:.1e} at "
            f"{self.parameter_of}; tolerance {TOLERANCE:.0e})"
        )


def verify(jobs: Sequence[Job], ranks: int, timeout_seconds: float = 600.0) -> list[Verdict]:
    """Verify programs on `ranks` gloo ranks of this machine, many in one launch.

    A job that crashes or hangs fails; the ones after it go on in a new launch. `timeout_seconds` is
    for each launch.
    """
    waiting = list(jobs)
    verdicts: dict[str, Verdict] = {}
    while waiting:
        failure = "it ended without a result"
        with tempfile.TemporaryDirectory(prefix="plait-verify-") as folder:
            todo, results = Path(folder, "jobs.json"), Path(folder, "results.jsonl")
            todo.write_bytes(msgspec.json.encode(waiting))
            results.touch()
            target = ["-m", "plait.runtime.verification.verify", str(todo), str(results)]
            try:
                launch(ranks, target, timeout_seconds=timeout_seconds)
            except LaunchError as error:
                failure = str(error)
            new_verdicts = [
                msgspec.json.decode(line, type=Verdict)
                for line in results.read_bytes().splitlines()
            ]
        verdicts.update((v.name, v) for v in new_verdicts)
        waiting = waiting[len(new_verdicts) :]
        if waiting:
            culprit = waiting.pop(0)
            verdicts[culprit.name] = Verdict(culprit.name, failure=failure)
    return [verdicts[job.name] for job in jobs]


def main(todo: str, results: str) -> None:
    """One rank of a launch: runs the jobs of a file; rank 0 writes a line per verdict."""
    from ..comm.process_group import GroupPool
    from ..launch.session import session

    jobs = msgspec.json.decode(Path(todo).read_bytes(), type=list[Job])
    known: dict[tuple[object, ...], Reference] = {}
    with session("gloo") as rank, Path(results).open("ab") as file:
        pool = GroupPool(rank)
        for job in jobs:
            verdict = _run(job, pool, known)
            if rank == 0:
                file.write(msgspec.json.encode(verdict) + b"\n")
                file.flush()


def _run(job: Job, pool: GroupPool, known: dict[tuple[object, ...], Reference]) -> Verdict:
    import torch

    from ...ir.capture import materialize
    from ...ir.capture.sources.configuration import default_dtype

    source = materialize(job.source, batch=job.batch, seq=job.seq, dtype="float64", seed=job.seed)
    with default_dtype(torch.float64):  # what integers become in a quotient or a logarithm
        return _against_reference(job, source, pool, known)


def _against_reference(
    job: Job, source: Source, pool: GroupPool, known: dict[tuple[object, ...], Reference]
) -> Verdict:
    import torch

    from ...ir.files import load
    from ...ir.model import Model
    from ..program import Program
    from .reference import LEARNING_RATE, reference

    start, rank = time.monotonic(), pool.rank
    key = (job.source, job.model, job.batch, job.seq, job.steps, job.seed)
    if rank == 0 and key not in known:
        model = load(Path(job.model).read_bytes(), Model, "plait/model")
        known[key] = reference(source, model, job.steps, job.seed)
    program = Program.open(
        job.folder,
        source.model,
        torch.optim.AdamW,
        {"lr": LEARNING_RATE},
        device="cpu",
        seed=job.seed,
        pool=pool,
    )
    losses, gradients = [], {}
    for step in range(job.steps):
        losses.append(float(program.forward_backward(source.batch)))
        if step == 0:
            gradients = program.full_gradients()
        program.optimizer_step()
    state = program.state_dict()
    if rank != 0:
        return Verdict(job.name)
    return compare(job.name, known[key], losses, gradients, state, time.monotonic() - start)


def compare(
    name: str,
    expected: Reference,
    losses: list[float],
    gradients: dict[str, Tensor],
    state: dict[str, Tensor],
    seconds: float,
) -> Verdict:
    """The verdict on one program's numbers."""
    loss = max(_relative(abs(a - b), abs(b)) for a, b in zip(losses, expected.losses, strict=True))
    gradient, gradient_of = worst(gradients, expected.gradients, GRADIENT_FLOOR)
    parameter, parameter_of = worst(state, expected.state, 1.0)
    return Verdict(name, loss, gradient, gradient_of, parameter, parameter_of, seconds)


def worst(
    actual: dict[str, Tensor], expected: dict[str, Tensor], floor: float
) -> tuple[float, str]:
    """The largest relative error and its tensor; a tensor that only one side has is infinitely off.

    The error of a tensor is max|a - b| / max|b|, where max|b| is taken to be at least `floor` times
    that of the largest floating-point tensor.
    """
    odd = sorted(actual.keys() ^ expected.keys())
    if odd:
        return math.inf, f"{odd[0]} ({'missing' if odd[0] in expected else 'not expected'})"
    sizes = {n: _size(t) for n, t in expected.items()}
    scale = max((sizes[n] for n, t in expected.items() if t.is_floating_point()), default=0.0)
    largest, where = 0.0, "none"
    for name, tensor in expected.items():
        if actual[name].shape != tensor.shape:
            return math.inf, f"{name} (shape {list(actual[name].shape)}, not {list(tensor.shape)})"
        error = _relative(
            _size(actual[name].double() - tensor.double()), max(sizes[name], floor * scale)
        )
        if not error <= largest or where == "none":
            largest, where = error, name
    return largest, where


def _size(tensor: Tensor) -> float:
    return float(tensor.double().abs().max()) if tensor.numel() else 0.0


def _relative(difference: float, size: float) -> float:
    """A relative error; not-a-number counts as infinitely wrong."""
    if difference == 0.0:
        return 0.0
    error = difference / max(size, 1e-300)
    return math.inf if math.isnan(error) else error


if __name__ == "__main__":
    main(*sys.argv[1:])
