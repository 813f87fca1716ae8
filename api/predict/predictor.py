"""From a run to seconds and bytes: its layers traced once per shape, priced like a plan's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from ...cost_model.execution_model import ExecutionModel, execution_model
from ...cost_model.memory.offload import offloaded_cost
from ...cost_model.operators.function_cost import FunctionCostTable
from ...cost_model.scaled_cluster import ScaleFactors, scaled_cluster
from ...ir.cached import cached_method
from ...ir.devices.cluster import Cluster, Device
from ...ir.model.model import Function, Model
from ...ir.plan.memory_action import KEEP, RECOMPUTE, MemoryAction
from ...ir.plan.plan import Optimizer, Stage
from ...planner.pricing.candidate_pricer import CandidatePricer
from ...planner.pricing.function_prices import CallPrice, FunctionPrices
from ...planner.pricing.function_tables import FunctionTables, TableKey
from ...planner.question.candidate import CallPoint, Candidate
from ...planner.sharding.model_shardings import ModelShardings
from .architecture import Architecture, LayerKind
from .deepen import LAYERS, deepen
from .machine import cluster_of
from .run import UNKNOWN, Layout, RunConfig, UnmodelledError

EQUAL_LAYERS = 2  # become one function
LARGE_ELEMENTS = 1 << 20  # of a matrix that is sharded
UNSCALED = ScaleFactors()
MEMORY_DOUBT = 1.15  # bytes predicted per byte there, up to which a run may fit (the median error)
PADDED_ROWS = 128  # of a tensor rank's part of an embedding, where a vocabulary is padded
FRAGMENTATION = (
    0.15  # of what an allocator has: the mean over eight models (GMLake, Guo et al. 2024)
)
# NCCL 2: for 24 channels, buffers of a ring and of a tree, each 4 MiB, 4.7 MiB and 0.5 MiB by protocol
COMMUNICATOR_BYTES = 24 * 2 * int(9.2 * 2**20)
MEMORY_ACTIONS = {"full": RECOMPUTE, "half": RECOMPUTE, "operators": MemoryAction(50)}
RECOMPUTE_LADDER = ("none", "attention", "half", "full")  # what a run may do that says nothing
WEIGHT_BYTES = 2  # of a weight beneath quantised products
SAMPLES = 12  # of a trace: batches of 2 and of 3 give those of every other size


TraceKey = tuple[Architecture, tuple[LayerKind, ...], str, int]  # with a dtype and a batch


class Precision(NamedTuple):
    """Torch types of weights and of the operands of products (None: the same), and bytes moved to
    quantise an element of these: 2 to read it, 1 to write it in either orientation, 2 more to find a
    scale first (for the tensor, or for rows and for columns apart); 4 to scale an element of both
    results of backward, where no fast kernel does (pytorch/ao 2184), of three."""

    weights: str
    matrix: str | None = None
    cast_bytes: float = 0.0


FP8, FP4 = "float8_e4m3fn", "float4_e2m1fn_x2"
PRECISIONS = {
    "fp32": Precision("float32"),
    "fp16": Precision("float16"),
    "bf16": Precision("bfloat16"),
    "fp8": Precision("bfloat16", FP8, 4),  # scales of earlier steps
    "fp8-tensorwise": Precision("bfloat16", FP8, 6),
    "fp8-rowwise": Precision("bfloat16", FP8, 10 + 4 * 2 / 3),
    "fp8-blockwise": Precision("bfloat16", FP8, 6),
    "mxfp8": Precision("bfloat16", FP8, 4.5),  # and a scale per 32 elements, in the products' order
    "nvfp4": Precision("bfloat16", FP4, 8),  # rotated, rounded at random; a scale per tensor first
}
MIXED = Optimizer("adamw", 3, 4)  # two moments and the weights in full precision
CASTING = Optimizer(
    "adamw", 5, 2
)  # as MIXED, but 16 bits of the weights are those that are counted
FULL = Optimizer("adamw", 2, 4)


class PredictedRun(msgspec.Struct, frozen=True):
    """What a run is predicted to take. `peak_bytes` is the least of a device that it fits in;
    `allocated_bytes` what tensors take of it, `reserved_bytes` what an allocator has where memory is
    not short, `device_bytes` that and what libraries take. `recompute`: what was taken."""

    step_seconds: float
    peak_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    fits: bool
    candidate: Candidate
    stages: tuple[Stage, ...]
    recompute: str
    notes: tuple[str, ...] = ()

    def measured_bytes(self, kind: str) -> int:
        """The bytes that a measurement of a kind, as in `nvidia-smi` or `torch max allocated`, counts;
        what nobody names is taken for what the allocator has."""
        if "smi" in kind:
            return self.device_bytes
        return self.allocated_bytes if "allocated" in kind else self.reserved_bytes


class RunTables(FunctionTables):
    """Tables whose partial memory action is that of selective activation checkpointing by operator.

    Products outside of layers are those of the head, which recipes of fewer bits leave out: Megatron
    Core's output layer is none of Transformer Engine's, and torchtitan's float8 filters `output`."""

    def execution_of(self, function: str) -> ExecutionModel:
        if self.execution.matrix_dtype is None or function in self.layer_functions:
            return self.execution
        return replace(self.execution, matrix_dtype=None)

    @cached_property
    def layer_functions(self) -> frozenset[str]:
        return frozenset(c.function for c in self.model.calls if c.path.startswith(LAYERS))

    def selected(self, key: TableKey, memory: MemoryAction) -> tuple[int, ...]:
        table = self.table_of(key)
        assert table is not None
        return expensive_results(table.costs)


def expensive_results(costs: FunctionCostTable) -> tuple[int, ...]:
    """Results of attention and of every second product in forward, the first one included: what
    selective checkpointing saves (torchtitan's policy of `selective` with option `op`)."""
    forward = costs.local_functions[0].forward_ops
    products = [op for op in forward if costs.work(op) == "gemm"]
    attention = [op for op in forward if costs.work(op) == "attention"]
    return tuple(sorted(r for op in (*products[::2], *attention) for r in op.results if r >= 0))


class RunPrices(FunctionPrices):
    """Prices without a plan's bounds on the batch: micro-batches are what the run says. All large
    matrices are sharded along a tensor axis, vocabularies too."""

    def make_shardings(self) -> ModelShardings:
        return ModelShardings(self.values, self.cluster, self.execution, large_matrices)

    def make_tables(self) -> FunctionTables:
        return RunTables(self.shardings, self.execution, single_replica_apart=False)

    @cached_method
    def call_price(self, name: str, point: CallPoint) -> CallPrice | None:
        table = self.table(name, point)
        if table is None:
            return None
        cost = table.costs.at(point.samples, self.tables.variant(name, point), SAMPLES)
        if point.memory.on_host:
            cost = offloaded_cost(cost, self.cluster.device)
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
    """Predicts runs; caches traces (which `models` may share) and prices by shape. `factors` slow the
    machine of every run down."""

    def __init__(
        self, factors: ScaleFactors = UNSCALED, models: dict[TraceKey, Model] | None = None
    ) -> None:
        self.factors, self.models = factors, {} if models is None else models
        self.function_prices: dict[tuple[object, ...], RunPrices] = {}

    def predict(self, architecture: Architecture, run: RunConfig) -> PredictedRun:
        """Where nothing says what a run recomputes, the least that may fit is taken, and the run fits if
        some recomputation does. Raises UnmodelledError where the strategy cannot split the model."""
        ladder = RECOMPUTE_LADDER if run.recompute == UNKNOWN else (run.recompute,)
        first, *others = ladder
        steps = [self.predict_known(architecture, replace(run, recompute=first))]
        for recompute in others:
            if not steps[-1].fits:
                steps.append(self.predict_known(architecture, replace(run, recompute=recompute)))
        limit = MEMORY_DOUBT * cluster_of(run).device.memory_bytes
        taken = next((step for step in steps if step.peak_bytes <= limit), steps[0])
        return replace(taken, fits=steps[-1].fits)

    def predict_known(self, architecture: Architecture, run: RunConfig) -> PredictedRun:
        """The prediction of a run whose recomputation is known."""
        cluster = scaled_cluster(cluster_of(run), self.factors)
        routing = replace(run.routing, group_share=architecture.group_share)
        execution = replace(execution_model_of(run), routing=routing)
        precision, notes = precision_of(run, cluster.device), ()
        if precision != run.precision:
            notes = (f"{run.device} has no rate for {run.precision}: {precision}",)
            execution = replace(execution, matrix_dtype=PRECISIONS[precision].matrix)
        written = not run.fused_attention and run.recompute != "attention"
        vocabulary = padded_vocabulary(architecture.vocabulary, run.layout.tensor)
        architecture = replace(architecture, fused_attention=not written, vocabulary=vocabulary)
        prices = self.prices(architecture, run, cluster, execution)
        pricer = CandidatePricer(prices, run.global_batch, optimizer_of(run, execution))
        memory = MEMORY_ACTIONS.get(run.recompute, KEEP)
        memory = MemoryAction(memory.saved_percent, run.offload == "activations")
        candidate = pricer.candidate(
            replace(pricer.point(run.layout.strategy, run.micro_batches), memory=memory)
        )
        if candidate is None:
            raise UnmodelledError(
                f"{run.layout.strategy} cannot split {run.layers} layers of {architecture}"
            )
        stages = pricer.stages(candidate)
        fullest = max(stages, key=lambda s: s.peak_bytes)
        cached = cached_weight_bytes(prices.model, execution, cluster.device, run.layout, fullest)
        allocated, communicators = tensor_bytes(fullest) + cached, communicator_bytes(run.layout)
        libraries = dict(fullest.memory_terms)["runtime"] + communicators
        reserved = reserved_bytes(allocated, cluster.device.memory_bytes - libraries)
        peak = candidate.peak_bytes + cached
        fits = peak + communicators <= cluster.device.memory_bytes
        return PredictedRun(
            candidate.step_seconds,
            peak,
            allocated,
            reserved,
            reserved + libraries,
            fits,
            candidate,
            stages,
            run.recompute,
            notes,
        )

    def prices(
        self,
        architecture: Architecture,
        run: RunConfig,
        cluster: Cluster,
        execution: ExecutionModel,
    ) -> RunPrices:
        dtype = PRECISIONS[run.precision].weights
        experts = run.layout.experts
        machine = (cluster.name, cluster.device.memory_bytes, cluster.levels)
        key = (architecture, run.layers, dtype, experts, machine, execution)
        if key not in self.function_prices:
            kinds = architecture.kinds(run.layers)
            traced = traced_kinds(kinds, architecture.adapter_rank > 0)
            model = self.trace(architecture, tuple(traced), dtype, SAMPLES * experts)
            deep = deepen(model, traced_layers(kinds, traced))
            self.function_prices[key] = RunPrices(deep, cluster, execution)
        return self.function_prices[key]

    def trace(
        self, architecture: Architecture, kinds: tuple[LayerKind, ...], dtype: str, batch: int
    ) -> Model:
        from .tracing import trace

        key = (architecture, kinds, dtype, batch)
        if key not in self.models:
            self.models[key] = trace(architecture, kinds, batch, dtype)
        return self.models[key]


def traced_kinds(kinds: Sequence[LayerKind], frozen: bool) -> list[LayerKind]:
    """The layers of a traced model: enough of every kind to become one function. Beneath adapters
    (`frozen`) the first layer passes no gradient on and is a function of its own."""
    each = [kind for kind in dict.fromkeys(kinds) for _ in range(EQUAL_LAYERS)]
    return [*kinds[:1], *each] if frozen else each


def traced_layers(kinds: Sequence[LayerKind], traced: Sequence[LayerKind]) -> list[int]:
    """The traced layer that every layer is a copy of: the last of its kind, and the first one first."""
    last = {kind: i for i, kind in enumerate(traced)}
    return [0, *(last[kind] for kind in kinds[1:])]


def precision_of(run: RunConfig, device: Device) -> str:
    """The precision of a run's products: of 4-bit floats 8-bit ones, of those 16-bit ones, where a
    device has no rate for them."""
    narrower = {FP4: "fp8", FP8: "bf16"}
    precision = run.precision
    while (matrix := PRECISIONS[precision].matrix) and matrix not in device.peak_flops:
        precision = narrower[matrix]
    return precision


def padded_vocabulary(vocabulary: int, tensor: int) -> int:
    """Rows of an embedding that tensor ranks share: frameworks add some where they do not divide it
    (make-vocab-size-divisible-by of Megatron-LM)."""
    unit = PADDED_ROWS * tensor
    return vocabulary if vocabulary % tensor == 0 else -(-vocabulary // unit) * unit


def tensor_bytes(stage: Stage) -> int:
    """Bytes that tensors take of a device of a stage at its peak."""
    terms = dict(stage.memory_terms)
    return sum(terms.values()) - terms["runtime"] - terms["margin"]


def reserved_bytes(allocated: int, limit: int) -> int:
    """Bytes that a caching allocator has for tensors of `allocated` bytes. It gives blocks back where
    the device is full, so `limit` bytes hold as many tensors as they can."""
    return max(allocated, min(round(allocated / (1 - FRAGMENTATION)), limit))


def communicator_bytes(layout: Layout) -> int:
    """Bytes of NCCL's buffers: a communicator for every axis that communicates, and one for all."""
    axes = sum(size > 1 for _, size in layout.strategy.axes)
    return COMMUNICATOR_BYTES * (axes + 1) if axes else 0


def cached_weight_bytes(
    model: Model, execution: ExecutionModel, device: Device, layout: Layout, stage: Stage
) -> int:
    """Bytes of the quantised copies that layers' weights have beside themselves. Products of 8-bit
    floats on devices without 4-bit ones take operands of one order, so either order is there."""
    if not execution.caches_quantised or execution.matrix_dtype is None or layout.zero_stage == 3:
        return 0
    of_layers, others = 0, 0
    for parameter in model.parameters:
        inside = LAYERS in parameter.name
        of_layers += parameter.type.elements * inside
        others += parameter.type.elements * (not inside)
    ends = others / (1 if layout.pipeline == 1 else 2)
    share = of_layers / layout.pipeline / (of_layers / layout.pipeline + ends)
    elements = dict(stage.memory_terms)["parameters"] / WEIGHT_BYTES * share
    return round(elements * (1 if FP4 in device.peak_flops else 2))


def execution_model_of(run: RunConfig) -> ExecutionModel:
    """How the run's framework executes it: its execution model, and what the row says beyond that."""
    model = execution_model(run.engine, PRECISIONS[run.precision].weights)
    overlaps = model.overlaps
    if run.tensor_overlap is not None:
        overlaps = (*(o for o in overlaps if o != "tp"), *["tp"] * run.tensor_overlap)
    return replace(
        model,
        overlaps=overlaps,
        fused=model.fused if model.compiled or run.fused_attention else ("pointwise",),
        fused_attention=run.fused_attention,
        matrix_dtype=PRECISIONS[run.precision].matrix,
        cast_bytes=PRECISIONS[run.precision].cast_bytes,
        chunks=run.layout.chunks,
        recompute_every=2 if run.recompute == "half" else 1,
        steps_on_host=run.offload == "optimizer",
    )


def optimizer_of(run: RunConfig, execution: ExecutionModel) -> Optimizer:
    """The optimizer of a run: Adam in full precision."""
    mixed = CASTING if execution.casts_weights else MIXED
    optimizer = FULL if run.precision == "fp32" else mixed
    return replace(optimizer, on_host=execution.steps_on_host)
