"""Runs programs on gloo ranks and compares them with training in one process."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from ...ir.errors import VerifyError
from ..launch.launch import LaunchError, launch
from ..launch.scratch import scratch_folder

TOLERANCE = 1e-9
EXACT = (TOLERANCE, TOLERANCE, TOLERANCE)  # of loss, gradients and parameters


Cause = Literal["program", "time", "start"]
CAUSES: dict[Cause, str] = {
    "program": "the program failed",
    "time": "time is up",
    "start": "ranks could not start",
}


class Job(msgspec.Struct, frozen=True):
    """One program to verify: its folder, where its module comes from, and its traced model.

    The program and `model` (a file) are of float64 (see `ir.lowering.cast`), or of another
    `precision`, in which rounding is measured. `source` is a factory or configuration, whose module is
    the reference, or a model file, which is interpreted. `optimizer`: see `training.training_of`.
    `lossy`: the program compresses what it sends, so that its numbers are only near the others.
    """

    name: str
    folder: str
    source: str
    model: str
    batch: int | None = None
    seq: int | None = None
    steps: int = 2
    seed: int = 0
    optimizer: str = "adamw"
    precision: str = "fp64"
    lossy: bool = False


class Verdict(msgspec.Struct, frozen=True):
    """How far a program is from one process: largest relative errors, and the tensor with each.

    `failure` is empty, or the error of a failed run: `cause` says whether the program failed, its time
    was up or the ranks could not even start; `first_wrong` says which number is wrong first,
    by how much and where; `notes` what could not be checked. `allowed` are the largest errors of
    loss, gradients and parameters that pass.
    """

    name: str
    loss: float = math.inf
    gradient: float = math.inf
    gradient_of: str = ""
    parameter: float = math.inf
    parameter_of: str = ""
    seconds: float = 0.0
    failure: str = ""
    first_wrong: str = ""
    notes: tuple[str, ...] = ()
    allowed: tuple[float, float, float] = EXACT
    cause: Cause = "program"

    @property
    def passed(self) -> bool:
        errors = (self.loss, self.gradient, self.parameter)
        within = all(e <= most for e, most in zip(errors, self.allowed, strict=True))
        return not self.failure and not self.first_wrong and within

    def line(self) -> str:
        """Itself as a line of JSON, in which errors may be infinite or no number; see `read`."""
        return json.dumps(msgspec.to_builtins(self)) + "\n"

    @staticmethod
    def read(line: str) -> Verdict:
        """The verdict of a `line`."""
        return msgspec.convert(json.loads(line), Verdict)

    def require(self) -> Verdict:
        """Itself, or VerifyError naming the first wrong tensor."""
        if not self.passed:
            raise VerifyError(str(self))
        return self

    def __str__(self) -> str:
        if self.failure:
            return f"{self.name}: {CAUSES[self.cause]}: {self.failure}"
        verdict = "agrees with one process" if self.passed else "DIFFERS from one process"
        tolerances = ", ".join(dict.fromkeys(f"{most:.0e}" for most in self.allowed))
        text = (
            f"{self.name}: {verdict} (relative errors: loss {self.loss:.1e}, gradients "
            f"{self.gradient:.1e} at {self.gradient_of}, parameters {self.parameter:.1e} at "
            f"{self.parameter_of}; tolerance {tolerances})"
        )
        return f"{text}; first wrong: {self.first_wrong}" if self.first_wrong else text


def started_file(results: Path) -> Path:
    """What ranks write once they have joined each other."""
    return results.with_suffix(".started")


def verify(jobs: Sequence[Job], ranks: int, timeout_seconds: float = 600.0) -> list[Verdict]:
    """Verify programs on `ranks` gloo ranks of this machine, many in one launch.

    A job that crashes or hangs fails; the ones after it go on in a new launch. `timeout_seconds` is
    for each launch.
    """
    waiting = list(jobs)
    verdicts: dict[str, Verdict] = {}
    while waiting:
        failure = "it ended without a result"
        cause: Cause = "program"
        with scratch_folder("verify") as folder:
            todo, results = folder / "jobs.json", folder / "results.jsonl"
            todo.write_bytes(msgspec.json.encode(waiting))
            results.touch()
            target = ["-m", "plait.runtime.verification.rank", str(todo), str(results)]
            try:
                launch(ranks, target, timeout_seconds=timeout_seconds)
            except LaunchError as error:
                failure = str(error)
                started = started_file(results).exists()
                cause = "time" if error.timed_out else "program" if started else "start"
            new_verdicts = [Verdict.read(line) for line in results.read_text().splitlines()]
        verdicts.update((v.name, v) for v in new_verdicts)
        waiting = waiting[len(new_verdicts) :]
        if waiting:
            culprit = waiting.pop(0)
            verdicts[culprit.name] = Verdict(culprit.name, failure=failure, cause=cause)
    return [verdicts[job.name] for job in jobs]
