"""From a run to seconds and bytes: its layers traced once per shape, priced like a plan's."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from ...cost_model.execution_model import COMPILED, Practice
from ...ir.devices.cluster import Cluster
from ...ir.loops import Work
from ...ir.model import Call, Function, Model
from ...ir.plan.plan import Memory, Optimizer, Stage
from ...planner.candidate import Candidate
from ...planner.pricing.candidate_pricer import Evaluator
from ...planner.pricing.function_prices import Entries, Entry, Table, TableKey, Word
from .architecture import Architecture
from .deepen import deepen
from .machine import cluster_of
from .run import Run, Unmodelled

EQUAL_LAYERS = 2  # become one function; beneath adapters the first layer passes no gradient on
LARGE_ELEMENTS = 1 << 20  # of a matrix that lies in pieces
SAMPLES = 12  # of a trace: batches of 2 and of 3 give those of every other size
EAGER_SECONDS = 18e-6  # host time per operator of an eager framework (assumed)
COMPILED_SECONDS = 5e-6  # and per kernel of a compiled one (assumed)
# fmt: off
PRECISIONS = {
    "fp8": ("bfloat16", "float8_e4m3fn"), "bf16": ("bfloat16", None), "fp16": ("float16", None),
    "fp32": ("float32", None),
}
# fmt: on
MIXED = Optimizer("adamw", 3, 4)  # two moments and the weights in full precision
FULL = Optimizer("adamw", 2, 4)


class Outcome(msgspec.Struct, frozen=True):
    """`peak_bytes` with everything the device holds, `allocated_bytes` without the runtime's own
    and without margin: what an allocator reports."""

    step_seconds: float
    peak_bytes: int
    allocated_bytes: int
    fits: bool
    candidate: Candidate
    stages: tuple[Stage, ...]


class RunEntries(Entries):
    """Prices without a plan's bounds on the batch: micro-batches are what the run says. All large
    matrices lie in pieces along a tensor axis, vocabularies too."""

    def price(self, name: str, word: Word, local_batch: int, memory: Memory) -> Entry | None:
        table = self.table_of(name, word, local_batch)
        if table is None:
            return None
        variant = self.variant(name, word, local_batch, memory)
        return Entry(table.costs.at(local_batch, variant, SAMPLES), table.summed_bytes)

    def table_of(self, name: str, word: Word, local_batch: int, pieces: int = 1) -> Table | None:
        key = self.key(name, word, local_batch, pieces)
        if key not in self.tables:
            self.tables[key] = self.table(name, word, SAMPLES, False, pieces)
        return self.tables[key]

    def key(self, name: str, word: Word, local_batch: int, pieces: int = 1) -> TableKey:
        return name, word, False, pieces

    def weights(self, function: Function, calls: list[Call]) -> frozenset[int]:
        held = (i.value for i in function.held() if i.gradient is not None)
        return frozenset(
            v
            for v in held
            if len(function.types[v].shape) > 1 and function.types[v].elements >= LARGE_ELEMENTS
        )


class Predictor:
    """Predicts runs; keeps the traces and prices of shapes it has met."""

    def __init__(self) -> None:
        self.models: dict[tuple[Architecture, str, int], Model] = {}
        self.entries: dict[tuple[object, ...], RunEntries] = {}

    def predict(self, architecture: Architecture, run: Run) -> Outcome:
        """Raises Unmodelled where the run cannot be split so."""
        cluster, practice = cluster_of(run), practice_of(run)
        if practice.matrix_dtype and practice.matrix_dtype not in cluster.device.peak_flops:
            raise Unmodelled(f"gpu {run.device!r} has no rate for precision {run.precision}")
        written = not run.fused_attention and run.recompute != "attention"
        architecture = replace(architecture, fused_attention=not written)
        entries = self.prices(architecture, run, cluster, practice)
        optimizer = FULL if run.precision == "fp32" else MIXED
        evaluator = Evaluator(entries, run.global_batch, optimizer)
        memory: Memory = "recompute" if run.recompute in ("full", "half") else "keep"
        candidate = evaluator.candidate(run.layout.strategy, run.micro_batches, memory)
        if candidate is None:
            raise Unmodelled(
                f"{run.layout.strategy} cannot split {run.layers} layers of {architecture}"
            )
        stages = evaluator.stages(candidate)
        terms = dict(max(stages, key=lambda s: s.peak_bytes).memory)
        allocated = sum(terms.values()) - terms["runtime"] - terms["margin"]
        fits = candidate.peak_bytes <= cluster.device.memory_bytes
        return Outcome(
            candidate.step_seconds, candidate.peak_bytes, allocated, fits, candidate, stages
        )

    def prices(
        self, architecture: Architecture, run: Run, cluster: Cluster, practice: Practice
    ) -> RunEntries:
        dtype, _ = PRECISIONS[run.precision]
        experts = run.layout.experts
        machine = (cluster.name, cluster.device.memory_bytes, cluster.levels)
        key = (architecture, run.layers, dtype, experts, machine, practice)
        if key not in self.entries:
            model = deepen(self.trace(architecture, dtype, SAMPLES * experts), run.layers)
            self.entries[key] = RunEntries(model, cluster, practice)
        return self.entries[key]

    def trace(self, architecture: Architecture, dtype: str, batch: int) -> Model:
        from .tracing import trace

        key = (architecture, dtype, batch)
        if key not in self.models:
            layers = EQUAL_LAYERS + (architecture.adapter_rank > 0)
            self.models[key] = trace(architecture, layers, batch, dtype)
        return self.models[key]


def practice_of(run: Run) -> Practice:
    """What frameworks do: those that shard states overlap, and plain replicas where nothing else
    splits the model."""
    layout = run.layout
    return Practice(
        overlap=layout.zero_stage > 0 or layout.tensor == layout.pipeline == 1,
        fused=fused_kinds(run),
        fused_attention=run.fused_attention,
        compiled=run.compiled,
        dispatch_seconds=COMPILED_SECONDS if run.compiled else EAGER_SECONDS,
        matrix_dtype=PRECISIONS[run.precision][1],
        gradient_item_bytes=4,
        chunks=layout.chunks,
        rematerialised=True,
        sent_in_place=True,
        lets_go=False,
        states_over_all=layout.zero_stage > 0,
        even_layers=True,
        recompute_every=2 if run.recompute == "half" else 1,
    )


def fused_kinds(run: Run) -> tuple[Work, ...]:
    """Compilers fuse, and so do libraries of kernels for whole layers. Without fused attention there
    is no such library, only pointwise chains; what shards weights runs the user's own operators."""
    if run.compiled or (run.layout.zero_stage < 2 and run.fused_attention):
        return COMPILED
    return ("pointwise",) if run.layout.zero_stage < 2 else ()
