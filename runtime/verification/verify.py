"""Runs programs on gloo ranks and compares them with training in one process."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from ...ir.errors import LimitError, PlaitError, VerifyError
from ..launch.launch import LaunchError, launch
from ..launch.scratch import scratch_folder

TOLERANCE = 1e-9
EXACT = (TOLERANCE, TOLERANCE, TOLERANCE)  # of loss, gradients and parameters


Cause = Literal["program", "rank", "time", "start"]
CAUSES: dict[Cause, str] = {
    "program": "the program failed",
    "rank": "a rank raised an error",
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


class RankError(PlaitError):
    """A rank of a program raised an error; the exit code is that of the error's kind."""

    exit_code = 1


class Raised(msgspec.Struct, frozen=True):
    """The error that a rank raised: its kind and message, the exit code of its kind, and whether the
    rank only lost another one."""

    rank: int
    text: str
    exit_code: int
    lost_rank: bool

    def __str__(self) -> str:
        return f"rank {self.rank} raised {self.text}"

    def error(self, name: str) -> RankError:
        """The error of a verification of `name` in which this was raised."""
        error = RankError(f"{name}: {self}")
        error.exit_code = self.exit_code
        return error


class Verdict(msgspec.Struct, frozen=True):
    """How far a program is from one process: largest relative errors, and the tensor with each.

    `failure` is empty, or the error of a failed run: `cause` says whether a rank raised an error
    (`raised`), the program ended otherwise, its time was up or the ranks could not even start;
    `first_wrong` says which number is wrong first, by how much and where; `notes` what could not be
    checked. `allowed` are the largest errors of loss, gradients and parameters that pass.
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
    raised: Raised | None = None

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
        """Itself. Raises VerifyError naming the first wrong tensor, and where nothing was measured,
        RankError, LaunchError or LimitError."""
        error = self.error()
        if error is not None:
            raise error
        return self

    def error(self) -> PlaitError | None:
        """What a verdict that did not pass raises: VerifyError only for numbers that differ."""
        if self.passed:
            return None
        if not self.failure:
            return VerifyError(str(self))
        if self.raised is not None:
            return self.raised.error(self.name)
        text = str(self).splitlines()[0]
        return LimitError(text) if self.cause == "time" else LaunchError(text)

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


def raised_file(results: Path, rank: int) -> Path:
    """What a rank writes when it raises an error."""
    return results.with_suffix(f".raised_{rank}")


def first_raised(results: Path, ranks: int) -> Raised | None:
    """The error that some rank raised of itself; None where none did."""
    files = (raised_file(results, rank) for rank in range(ranks))
    errors = [msgspec.json.decode(f.read_bytes(), type=Raised) for f in files if f.exists()]
    return min(errors, key=lambda raised: (raised.lost_rank, raised.rank), default=None)


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
        raised: Raised | None = None
        with scratch_folder("verify") as folder:
            todo, results = folder / "jobs.json", folder / "results.jsonl"
            todo.write_bytes(msgspec.json.encode(waiting))
            results.touch()
            target = ["-m", "plait.runtime.verification.rank", str(todo), str(results)]
            try:
                launch(ranks, target, timeout_seconds=timeout_seconds)
            except LaunchError as error:
                failure = str(error)
                raised = first_raised(results, ranks)
                cause = _cause(error, raised, started_file(results).exists())
            new_verdicts = [Verdict.read(line) for line in results.read_text().splitlines()]
        verdicts.update((v.name, v) for v in new_verdicts)
        waiting = waiting[len(new_verdicts) :]
        if waiting:
            culprit = waiting.pop(0)
            verdicts[culprit.name] = Verdict(
                culprit.name, failure=failure, cause=cause, raised=raised
            )
    return [verdicts[job.name] for job in jobs]


def _cause(error: LaunchError, raised: Raised | None, started: bool) -> Cause:
    if raised is not None:
        return "rank"
    return "time" if error.timed_out else "program" if started else "start"
