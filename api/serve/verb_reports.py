"""What the verbs of the command line print under `--json`, as structs; `reports` has those of plans.

Where a verb prints one of several things, each has a name of its own.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ...cost_model.explain.term import Symbol, Term
from ...ir.devices.cluster import Cluster
from .reports import PlanReport, PlanRow, ServeReport


class TraceReport(ServeReport, frozen=True):
    """`plait trace`; `opaque`: operators without an entry of their own, `flops` of a step."""

    model: str
    functions: int
    calls: int
    operators: int
    opaque: list[str]
    parameters: int
    flops: float
    batch: int


class ExplainReport(PlanReport, frozen=True, kw_only=True):
    """`plait explain PLAN`: the plan, its terms and what their symbols mean."""

    terms: list[Term]
    symbols: list[Symbol]


class ExplainedChange(PlanRow, frozen=True, kw_only=True):
    """A configuration that differs in one thing; `gain`: samples per second more, as a fraction."""

    change: str
    gain: float


class ImportedReport(PlanRow, frozen=True, kw_only=True):
    """`plait explain FILE` of another engine; `binds`: seconds of the largest terms of a step."""

    engine: str
    global_batch: int
    bubble: float
    mfu: float
    binds: dict[str, float]
    unpriced: list[str]
    enough_memory: str | None
    changes: list[ExplainedChange]


class DiffReport(ServeReport, frozen=True):
    """`plait diff A B` and `plait explain --why-not`; pairs are of the plan and of the other one."""

    strategy_text: str = msgspec.field(name="word")
    instead_of: str
    micro_batches: int
    step_time_s: float
    plan_step_time_s: float
    peak: int
    budget: int
    fits: bool
    seconds: dict[str, tuple[float, float]]
    bytes: dict[str, tuple[float, float]]


class SimulatedStage(ServeReport, frozen=True):
    """A stage of a simulated step; `devices`: its first and last rank."""

    devices: tuple[int, int]
    busy_s: float
    bubble: float
    planned_bubble: float
    sync_s: float
    communication_s: float
    exposed_communication_s: float


class SimulateReport(ServeReport, frozen=True):
    """`plait simulate`: a step as planned and as changed, and every event of the changed one."""

    step_time_s: float
    planned_step_time_s: float
    bubble: float
    planned_bubble: float
    pipeline_time_s: float
    stages: list[SimulatedStage]
    events: list[dict[str, Any]]


class PlaceReport(ServeReport, frozen=True):
    """`plait place`; `device`: of every operator, `peak_memory`: bytes of every device."""

    device: dict[str, int]
    order: list[int]
    makespan_us: float
    lower_bound_us: float
    gap: float
    status: str
    peak_memory: list[float]
    algorithm: str
    time_s: float
    link: str
    memory_rule: str


class PackReport(ServeReport, frozen=True):
    """`plait pack`; bytes and a fraction."""

    status: str
    buffers: int
    peak: int
    lower_bound: int
    gap: float
    capacity: int | None
    time_s: float


class StageArenaReport(ServeReport, frozen=True):
    """The arena of a stage; `promised`: bytes that the plan counts for the same things."""

    stage: int
    status: str
    buffers: int
    peak: int
    lower_bound: int
    gap: float
    promised: int


class PackPlanReport(ServeReport, frozen=True):
    """`plait pack PLAN`."""

    stages: list[StageArenaReport]
    capacity: int | None
    time_s: float


class PredictReport(ServeReport, frozen=True):
    """`plait predict`."""

    rows: int
    predicted: int
    output: str
    cpu_seconds: float


class PrintedKernel(ServeReport, frozen=True):
    """A kernel for a target; no registers and spills on a CPU."""

    name: str
    target: str
    registers: int | None
    spills: int | None
    bytes_per_element: float


class KernelsReport(ServeReport, frozen=True):
    """`plait kernels`."""

    kernels: list[PrintedKernel]


class CalibrateReport(ServeReport, frozen=True, omit_defaults=True):
    """`plait calibrate`; the last four where a log was fitted."""

    output: str
    ranks: int
    kind: str
    flops_per_s: dict[str, float]
    memory_bytes_per_s: float
    launch_s: float
    link_bytes_per_s: float
    link_latency_s: float
    curves: int
    source: str
    time_s: float = 0.0
    steps: int = 0
    factors: dict[str, float] | None = None
    error_before: float = 0.0
    error_after: float = 0.0


class ClusterReport(ServeReport, frozen=True):
    """A name of `plait clusters`: devices of one group, GB/s and Gbit/s per device."""

    name: str
    device: str
    devices: int
    memory_gb: float
    bf16_tflops: float
    scale_up_gb_per_s: float
    network_gb_per_s: float
    source: str


class ClustersReport(ServeReport, frozen=True):
    """`plait clusters`."""

    clusters: list[ClusterReport]


class CheckReport(ServeReport, frozen=True):
    """`plait check`."""

    format: str
    ok: bool


class Verified(ServeReport, frozen=True):
    """Largest differences of a program from one process; None where none was measured."""

    passed: bool
    loss: float | None
    gradient: float | None
    parameter: float | None
    failure: str | None
    first_wrong: str | None
    notes: list[str]


class VerifyReport(Verified, frozen=True, kw_only=True, omit_defaults=True):
    """`plait verify`: in float64 and, of plans in 16 bits, in their own precision; `scale`: what was
    made smaller under `--scale`."""

    bf16: Verified | None = None
    fp16: Verified | None = None
    scale: dict[str, Any] | None = None


class FuzzOutcome(ServeReport, frozen=True, omit_defaults=True):
    """A composition that was tried: refused, or verified."""

    composition: str
    refused: str | None = None
    passed: bool | None = None
    loss: float | None = None
    gradient: float | None = None
    parameter: float | None = None
    failure: str | None = None
    first_wrong: str | None = None
    notes: tuple[str, ...] = ()


class FuzzReport(ServeReport, frozen=True):
    """`plait verify --fuzz`; `failures`: programs that gave no numbers, `mismatches`: other numbers."""

    tried: int
    refused: int
    failures: int
    mismatches: int
    outcomes: list[FuzzOutcome]


class Waiting(ServeReport, frozen=True):
    """A rank that waits in a collective for others."""

    rank: int
    collective: str
    awaits: list[int]


class InspectReport(ServeReport, frozen=True):
    """`plait inspect`; `steps`: where every rank was."""

    verdict: str
    missing: list[int]
    waits: list[Waiting]
    stragglers: list[str]
    steps: dict[str, int]


class DoctorFinding(ServeReport, frozen=True):
    """A package, program or device."""

    name: str
    state: str
    gives: str


class DoctorReport(ServeReport, frozen=True):
    """`plait doctor`."""

    findings: list[DoctorFinding]


class BucketReport(PlanReport, frozen=True, kw_only=True):
    """The plan of a sequence length."""

    tokens: int


class SwitchReport(ServeReport, frozen=True):
    """Bytes that a batch of another length sends (parameters to its plan, gradients back), and at most
    the peak of a device that has the tensors of both plans."""

    from_tokens: int = msgspec.field(name="from")
    to_tokens: int = msgspec.field(name="to")
    peak: int
    parameter_bytes: int
    gradient_bytes: int
    worst_rank: int
    worst_rank_bytes: int
    bytes_by_rank: list[int]


class BucketsReport(ServeReport, frozen=True):
    """`plait plan --buckets`."""

    buckets: list[BucketReport]
    switches: list[SwitchReport]


class TriedChange(ServeReport, frozen=True, omit_defaults=True):
    """A change of options that was tried where nothing fitted; figures where it fits."""

    change: str
    fits: bool
    step_time_s: float | None
    peak: int | None
    strategy_text: str | None = msgspec.field(name="word", default=None)
    micro_batches: int | None = None
    memory: str | None = None
    samples_per_s: float | None = None


class InfeasibleReport(ServeReport, frozen=True):
    """`plait plan` where nothing fits: the stage and term that bind, bytes, and changes that fit."""

    status: str
    stage: int
    term: str
    shortfall: int
    budget: int
    peak: int
    strategy_text: str = msgspec.field(name="word")
    tried: list[TriedChange] = msgspec.field(name="fixes")


VERB_REPORTS: dict[str, type[msgspec.Struct]] = {
    "trace": TraceReport,
    "explain": ExplainReport,
    "explain.imported": ImportedReport,
    "explain.why_not": DiffReport,
    "diff": DiffReport,
    "simulate": SimulateReport,
    "place": PlaceReport,
    "pack": PackReport,
    "pack.plan": PackPlanReport,
    "predict": PredictReport,
    "kernels": KernelsReport,
    "calibrate": CalibrateReport,
    "clusters": ClustersReport,
    "clusters.one": Cluster,
    "check": CheckReport,
    "verify": VerifyReport,
    "verify.fuzz": FuzzReport,
    "inspect": InspectReport,
    "doctor": DoctorReport,
    "plan.buckets": BucketsReport,
    "plan.infeasible": InfeasibleReport,
}
