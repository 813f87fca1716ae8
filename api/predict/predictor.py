"""From a run to seconds and bytes: its layers traced once per shape, priced like a plan's."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from ...cost_model.execution_model import COMPILED, ExecutionModel
from ...ir.cached import cached_method
from ...ir.devices.cluster import Cluster
from ...ir.model.loops import Work
from ...ir.model.model import Function, Model
from ...ir.plan.memory_action import KEEP, RECOMPUTE
from ...ir.plan.plan import Optimizer, Stage
from ...planner.pricing.candidate_pricer import CandidatePricer
from ...planner.pricing.function_prices import CallPrice, FunctionPrices
from ...planner.pricing.function_tables import FunctionTables
from ...planner.question.candidate import CallPoint, Candidate
from ...planner.sharding.model_shardings import ModelShardings
from .architecture import Architecture
from .deepen import deepen
from .machine import cluster_of
from .run import RunConfig, UnmodelledError

EQUAL_LAYERS = 2  # become one function; beneath adapters the first layer passes no gradient on
LARGE_ELEMENTS = 1 << 20  # of a matrix that is sharded
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


class PredictedRun(msgspec.Struct, frozen=True):
    """What a run is predicted to take. `peak_bytes` counts everything on the device, `allocated_bytes`
    what an allocator reports: neither the runtime's own nor the margin."""

    step_seconds: float
    peak_bytes: int
    allocated_bytes: int
    fits: bool
    candidate: Candidate
    stages: tuple[Stage, ...]


class RunPrices(FunctionPrices):
    """Prices without a plan's bounds on the batch: micro-batches are what the run says. All large
    matrices are sharded along a tensor axis, vocabularies too."""

    def make_shardings(self) -> ModelShardings:
        return ModelShardings(self.values, self.cluster, self.execution, large_matrices)

    def make_tables(self) -> FunctionTables:
        return FunctionTables(self.shardings, self.execution, single_replica_apart=False)

    @cached_method
    def call_price(self, name: str, point: CallPoint) -> CallPrice | None:
        table = self.table(name, point)
        if table is None:
            return None
        cost = table.costs.at(point.samples, self.tables.variant(name, point), SAMPLES)
        return CallPrice(cost, table.partial_gradient_bytes)


def large_matrices(function: Function, calls: int) -> frozenset[int]:
    """Weight matrices that a tensor axis shards, however often their function is called."""
    weights = (i.value for i in function.state_inputs() if i.gradient is not None)
    return frozenset(
        v
        for v in weights
        if len(function.types[v].shape) > 1 and function.types[v].elements >= LARGE_ELEMENTS
    )


class Predictor:
    """Predicts runs; caches traces and prices by shape."""

    def __init__(self) -> None:
        self.models: dict[tuple[Architecture, str, int], Model] = {}
        self.function_prices: dict[tuple[object, ...], RunPrices] = {}

    def predict(self, architecture: Architecture, run: RunConfig) -> PredictedRun:
        """Raises UnmodelledError where the run's strategy cannot split its model."""
        cluster, execution = cluster_of(run), execution_model_of(run)
        if execution.matrix_dtype and execution.matrix_dtype not in cluster.device.peak_flops:
            raise UnmodelledError(f"gpu {run.device!r} has no rate for precision {run.precision}")
        written = not run.fused_attention and run.recompute != "attention"
        architecture = replace(architecture, fused_attention=not written)
        prices = self.prices(architecture, run, cluster, execution)
        optimizer = FULL if run.precision == "fp32" else MIXED
        pricer = CandidatePricer(prices, run.global_batch, optimizer)
        memory = RECOMPUTE if run.recompute in ("full", "half") else KEEP
        candidate = pricer.candidate(
            replace(pricer.point(run.layout.strategy, run.micro_batches), memory=memory)
        )
        if candidate is None:
            raise UnmodelledError(
                f"{run.layout.strategy} cannot split {run.layers} layers of {architecture}"
            )
        stages = pricer.stages(candidate)
        terms = dict(max(stages, key=lambda s: s.peak_bytes).memory_terms)
        allocated = sum(terms.values()) - terms["runtime"] - terms["margin"]
        fits = candidate.peak_bytes <= cluster.device.memory_bytes
        return PredictedRun(
            candidate.step_seconds, candidate.peak_bytes, allocated, fits, candidate, stages
        )

    def prices(
        self,
        architecture: Architecture,
        run: RunConfig,
        cluster: Cluster,
        execution: ExecutionModel,
    ) -> RunPrices:
        dtype, _ = PRECISIONS[run.precision]
        experts = run.layout.experts
        machine = (cluster.name, cluster.device.memory_bytes, cluster.levels)
        key = (architecture, run.layers, dtype, experts, machine, execution)
        if key not in self.function_prices:
            model = deepen(self.trace(architecture, dtype, SAMPLES * experts), run.layers)
            self.function_prices[key] = RunPrices(model, cluster, execution)
        return self.function_prices[key]

    def trace(self, architecture: Architecture, dtype: str, batch: int) -> Model:
        from .tracing import trace

        key = (architecture, dtype, batch)
        if key not in self.models:
            layers = EQUAL_LAYERS + (architecture.adapter_rank > 0)
            self.models[key] = trace(architecture, layers, batch, dtype)
        return self.models[key]


def execution_model_of(run: RunConfig) -> ExecutionModel:
    """How the run's framework executes: frameworks that shard states overlap communication, and so do
    plain replicas where nothing else splits the model."""
    layout = run.layout
    return ExecutionModel(
        overlap=layout.zero_stage > 0 or layout.tensor == layout.pipeline == 1,
        fused=fused_kinds(run),
        fused_attention=run.fused_attention,
        compiled=run.compiled,
        dispatch_seconds=COMPILED_SECONDS if run.compiled else EAGER_SECONDS,
        matrix_dtype=PRECISIONS[run.precision][1],
        gradient_item_bytes=4,
        chunks=layout.chunks,
        rematerialised=True,
        contiguous_buffers=True,
        frees_per_call=False,
        shards_replicated_states=layout.zero_stage > 0,
        even_layers=True,
        recompute_every=2 if run.recompute == "half" else 1,
    )


def fused_kinds(run: RunConfig) -> tuple[Work, ...]:
    """Compilers fuse, and so do libraries of kernels for whole layers. Without fused attention there
    is no such library, only pointwise chains; what shards weights runs the user's own operators."""
    if run.compiled or (run.layout.zero_stage < 2 and run.fused_attention):
        return COMPILED
    return ("pointwise",) if run.layout.zero_stage < 2 else ()
