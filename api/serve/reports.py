"""What `--json` prints and a server answers, as structs: their schemas ship with the package."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class ServeReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object on stdout; every name is one of these."""


class StageMemoryReport(ServeReport, frozen=True):
    """Bytes of a device of a stage by term; `devices`: its first and last."""

    devices: tuple[int, int]
    terms: dict[str, int]
    peak: int
    budget: int


class LayerStrategy(ServeReport, frozen=True):
    """A run of equal layers."""

    function: str
    calls: int
    strategy_text: str = msgspec.field(name="word")
    memory: str


class Pipeline(ServeReport, frozen=True):
    """The pipeline of a plan; `chunks`: model chunks per stage, `bubble`: a fraction."""

    stages: int
    micro_batches: int
    schedule: str
    chunks: int
    bubble: float


class CompressedMessages(ServeReport, frozen=True):
    """Messages that travel compressed."""

    strategy: str
    role: str
    subject: str
    program: str


class PlannedGroup(ServeReport, frozen=True):
    """Devices of one kind on a mixed cluster; `ranks` and `calls`: the first and the last."""

    device: str
    ranks: tuple[int, int]
    calls: tuple[int, int]
    micro_batches: int


class PlanReport(ServeReport, frozen=True):
    """`plait plan --json` and the method `plan`; seconds, bytes and fractions, dollars and joules of a
    step where the cluster says what devices cost. `groups`: where stages are device groups."""

    status: Literal["optimal", "feasible"]
    gap: float
    step_time_s: float
    tokens_per_s: float
    samples_per_s: float
    mfu: float
    memory: tuple[StageMemoryReport, ...]
    strategy: tuple[LayerStrategy, ...]
    pipeline: Pipeline
    compression: tuple[CompressedMessages, ...]
    groups: tuple[PlannedGroup, ...]
    plan_time_s: dict[str, float]
    digest: str
    global_batch: int
    strategy_text: str = msgspec.field(name="word")
    front: tuple[dict[str, Any], ...] = ()
    dollars: float | None = None
    joules: float | None = None


class CandidateRow(ServeReport, frozen=True):
    """A strategy in a row of figures; `change`: what was changed for it."""

    strategy_text: str = msgspec.field(name="word")
    micro_batches: int
    memory: str
    step_time_s: float
    samples_per_s: float
    peak: int
    fits: bool
    change: str = ""


class WhatIfReport(ServeReport, frozen=True):
    """The method `what_if`; `gain`: samples per second more, as a fraction. `exact`: a search of its
    own, not the job's strategies with the prices of their layers kept."""

    before: CandidateRow
    after: CandidateRow
    gain: float
    exact: bool


class FitsReport(CandidateRow, frozen=True, kw_only=True):
    """The method `fits`; `smallest_change`: what fits, where this does not."""

    smallest_change: CandidateRow | None


class PlanRow(ServeReport, frozen=True):
    """A plan beside others."""

    strategy_text: str = msgspec.field(name="word")
    micro_batches: int
    memory: str
    step_time_s: float
    peak: int
    budget: int
    fits: bool


class BaselineRow(ServeReport, frozen=True, omit_defaults=True):
    """What others would do; figures only where it is possible."""

    name: str
    possible: bool
    strategy_text: str = msgspec.field(name="word", default="")
    micro_batches: int = 0
    memory: str = ""
    step_time_s: float = 0.0
    peak: int = 0
    budget: int = 0
    fits: bool = False
    times_as_long: float = 0.0


class CompareReport(ServeReport, frozen=True):
    """`plait diff --against … --json` and the method `compare`."""

    plan: PlanRow
    baselines: tuple[BaselineRow, ...]


class Refusal(ServeReport, frozen=True):
    """The error of a server's answer."""

    kind: str
    message: str
    exit_code: int
    smallest_change: CandidateRow | None


REPORTS: dict[str, type[ServeReport]] = {
    "plan": PlanReport,
    "what_if": WhatIfReport,
    "fits": FitsReport,
    "compare": CompareReport,
    "refusal": Refusal,
}
