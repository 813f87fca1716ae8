"""A log of measured steps, as `plait calibrate --log` reads it: one JSON object a line.

    {"plan": "plan.json", "step_seconds": 0.412, "peak_bytes": 1073741824}
    {"digest": "a3f1…", "step_seconds": 0.409}

`plan` is a path from the log's folder, `digest` that of a plan file in it. `peak_bytes`, the most that
a device had allocated, may be left out. Empty lines are skipped.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...cost_model.calibration.fit import MeasuredStep
from ...ir.errors import FileError, MismatchError, PlaitError
from ...ir.plan.plan import Plan
from ..formats import files

MOST_LINES = 100_000
SHOWN = 20  # bad lines in one error
LONGEST_SECONDS = 1e6


class LogLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    step_seconds: float
    plan: str = ""
    digest: str = ""
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.step_seconds < LONGEST_SECONDS:
            raise ValueError(f"step_seconds: {self.step_seconds} is not the length of a step")
        if not 0 <= self.peak_bytes < 1 << 60:
            raise ValueError(f"peak_bytes: {self.peak_bytes} is not a number of bytes")
        if bool(self.plan) == bool(self.digest):
            raise ValueError("either plan, a path, or digest is needed")


def read_steps(path: Path) -> list[MeasuredStep]:
    """The step of every line. Raises FileError with one message per line that is bad, and MismatchError
    where plans are for different clusters."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise FileError(f"{path}: not UTF-8 text") from None
    if len(lines) > MOST_LINES:
        raise FileError(f"{path}: {len(lines)} lines; at most {MOST_LINES} are read")
    plans = LoggedPlans(path.parent)
    steps: list[MeasuredStep] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                steps.append(step_of(line, plans))
        except (msgspec.MsgspecError, PlaitError) as error:
            faults.append(f"{path}: line {number}: {error}")
    if faults:
        rest = [f"and {len(faults) - SHOWN} more lines"] if len(faults) > SHOWN else []
        raise FileError("\n".join([*faults[:SHOWN], *rest]))
    if not steps:
        raise FileError(f'{path}: no steps; a line is {{"plan": "plan.json", "step_seconds": 0.4}}')
    check_one_cluster(steps)
    return steps


def step_of(line: str, plans: LoggedPlans) -> MeasuredStep:
    found = msgspec.json.decode(line, type=LogLine)
    plan = plans.read_plan(found.plan) if found.plan else plans.with_digest(found.digest)
    return MeasuredStep(plan, found.step_seconds, found.peak_bytes)


class LoggedPlans:
    """The plans that a log names, each read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: dict[str, Plan] = {}
        self.digests: dict[str, Plan] | None = None

    def read_plan(self, name: str) -> Plan:
        from .plan_object import load_plan

        if name not in self.read:
            self.read[name] = load_plan(self.folder / name)
        return self.read[name]

    def with_digest(self, text: str) -> Plan:
        if self.digests is None:
            self.digests = {plan.digest: plan for plan in self.in_folder()}
        if text not in self.digests:
            raise FileError(
                f"digest {text:.20}: no plan beside the log has it; write its path as plan"
            )
        return self.digests[text]

    def in_folder(self) -> list[Plan]:
        """The plans in the log's folder; other files there are skipped."""
        plans: list[Plan] = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                plans.append(files.read(path, Plan, "plait/plan"))
            except FileError:
                continue
        return plans


def check_one_cluster(steps: list[MeasuredStep]) -> None:
    """Raise MismatchError where plans are for different clusters: factors are those of one machine."""
    first = steps[0].plan.cluster
    for step in steps:
        other = step.plan.cluster
        if other != first:
            raise MismatchError(
                f"the plans are for {first} and for {other}; the steps of one cluster can be fitted"
            )
