"""A plan: the complete result of planning, with its predicted cost; all that codegen reads."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from ..devices.cluster import Cluster
from ..devices.mixed import memory_limit, sub_cluster
from ..files.json_files import digest
from ..model.mesh import Mesh
from ..model.model import Model
from ..ranges import (
    Amount,
    Bytes,
    Count,
    Digest,
    FewCount,
    Index,
    InFlight,
    Integer,
    ItemBytes,
    Rate,
    Seconds,
    Share,
    SlotCount,
    StateCount,
)
from .groups.device_group import DeviceGroup
from .memory_action import MemoryAction, Variant
from .schedules.chunk_map import ChunkMap
from .schedules.registry import chunk_map
from .sharding import Chunking, Sharding
from .strategy import Strategy
from .workload import CallWork, CompressibleTransfer, StrategyBytes, WaitingBeside

STEP_VECTORS = 3  # of most optimizers: a root, a quotient by it, and that of the tensor before


class Layers(msgspec.Struct, frozen=True):
    """A run of calls, `first` to `last - 1`: one function, one stage, one sharding and memory action.

    `sharding` indexes `Plan.shardings`, and `stage`, where stages are device groups, `Plan.stages`.
    Times are per call and micro-batch, predicted from the work of `forward` and `backward`.
    `batch_only`: the calls read the batch alone and run once per step, on every stage. `saved`: values
    of the per-device function that are saved under a partial memory action, and `producers` the
    operators that compute them.
    """

    first: Index
    last: Index
    sharding: Index
    memory: MemoryAction
    forward_seconds: Seconds = 0.0
    backward_seconds: Seconds = 0.0
    forward: CallWork = CallWork()
    backward: CallWork = CallWork()
    batch_only: bool = False
    saved: tuple[Index, ...] = ()
    producers: tuple[str, ...] = ()
    stage: Index | None = None

    @property
    def variant(self) -> Variant:
        """The values that forward saves, as `lowering.forward_backward.partition` takes them."""
        return self.memory.variant(self.saved)


Span = tuple[Index, Index]  # calls [first, last)


class Stage(msgspec.Struct, frozen=True):
    """A pipeline stage: its calls, and the predicted time and memory of one of its devices.

    `model_chunks` are spans of calls, several where the schedule interleaves. Times are of a
    micro-batch in all chunks; `transfer_bytes` is what one chunk sends to the next stage, of which
    `compressible` may be compressed. `memory_terms` are (name, bytes) that add up to the peak;
    `bytes_by_strategy` the weights and activations behind them. `resharding_seconds`: between calls
    of different strategies, both directions. `host_bytes`: host memory per device.
    `in_flight_micro_batches`: peak number of micro-batches that wait for backward. `weights_seconds`:
    the part of backward that other stages do not wait for, where the schedule runs it apart, and
    `waiting_beside`: what waits then.
    """

    model_chunks: tuple[Span, ...]
    in_flight_micro_batches: InFlight = 1.0
    forward_seconds: Seconds = 0.0
    backward_seconds: Seconds = 0.0
    communication_seconds: Seconds = 0.0
    sync_seconds: Seconds = 0.0
    transfer_bytes: Bytes = 0
    memory_terms: tuple[tuple[str, Bytes], ...] = ()
    bytes_by_strategy: tuple[StrategyBytes, ...] = ()
    resharding_seconds: Seconds = 0.0
    host_bytes: Bytes = 0
    compressible: CompressibleTransfer = CompressibleTransfer()
    weights_seconds: Seconds = 0.0
    waiting_beside: tuple[WaitingBeside, ...] = ()

    @property
    def weights_share(self) -> float:
        """Fraction of backward that other stages do not wait for."""
        return self.weights_seconds / self.backward_seconds if self.backward_seconds else 0.0

    @property
    def peak_bytes(self) -> int:
        """Predicted peak memory of one device."""
        return sum(amount for _, amount in self.memory_terms)

    def contains(self, call: int) -> bool:
        return any(first <= call < last for first, last in self.model_chunks)


class Prediction(msgspec.Struct, frozen=True):
    """Predicted speed of a step. `mfu` and `bubble` are fractions; `model_flops` is per step, as are
    dollars and joules where the cluster says what its devices cost."""

    step_seconds: Seconds = 0.0
    tokens_per_second: Rate = 0.0
    samples_per_second: Rate = 0.0
    mfu: Amount = 0.0
    bubble: Share = 0.0
    model_flops: Amount = 0.0
    dollars_per_step: Amount | None = None
    joules_per_step: Amount | None = None


class Alternative(msgspec.Struct, frozen=True, omit_defaults=True):
    """A strategy that was priced and not chosen.

    The fastest of a family (`ir/plan/family`) says what it costs by kind: `seconds` of a step add up
    to `step_seconds`, `memory_terms` of the fullest stage to `peak_bytes`.
    """

    strategy_text: str
    micro_batches: Count
    memory: str
    step_seconds: Seconds
    peak_bytes: Bytes
    fits: bool
    chunks_per_stage: Count = 1
    schedule: str = "1f1b"
    family: str = ""
    seconds: tuple[tuple[str, float], ...] = ()
    memory_terms: tuple[tuple[str, Bytes], ...] = ()

    @property
    def name(self) -> str:
        """`pp=4,dp=2`, `pp=4,dp=2 interleaved in 3 chunks`, `pp=4,dp=2 zbv`."""
        if self.schedule == "1f1b":
            return self.strategy_text
        chunks = f" in {self.chunks_per_stage} chunks" if self.schedule == "interleaved" else ""
        return f"{self.strategy_text} {self.schedule}{chunks}"


class CompressionChoice(msgspec.Struct, frozen=True):
    """A compression program for the collectives of one role of a strategy.

    Gradients and weights travel once per step along the batch axes; activations and their gradients
    travel in every micro-batch, between stages and in reductions over operator shards, and so do rows
    to experts and back. `program`
    names a program of `ir/compression`.
    """

    strategy: Strategy
    role: str
    subject: Literal["gradients", "weights", "activations", "rows"]
    program: str


OptimizerDemand = Literal["elementwise", "per tensor", "across tensors"]


class Optimizer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Optimizer state per parameter: number of tensors, and bytes of each of their elements.

    `demand`: what it must see to step: any shard, whole tensors, or all tensors of the model.
    `master_weights`: it steps on float32 copies of parameters of 16 bits, which count as a state.
    `step_vectors`: tensors of a parameter's size that a step makes for itself at once. `on_host`: it
    steps on the device's host, with its states, a copy of parameters and gradients in host memory.
    """

    name: str
    states: StateCount
    state_bytes: ItemBytes
    demand: OptimizerDemand = "elementwise"
    master_weights: bool = False
    step_vectors: StateCount = STEP_VECTORS
    on_host: bool = False

    @property
    def host_copies(self) -> int:
        """Tensors of a parameter's size in host memory where it steps there: states, the values that it
        steps on unless they count as a state, gradients."""
        return self.states + 2 - int(self.master_weights) if self.on_host else 0


class Plan(msgspec.Struct, frozen=True):
    """Everything that was decided. `mesh` has every device axis, stages first, ranks in row-major order.

    Layers may have different strategies with equal numbers of stages; `mesh` is then the common mesh
    that refines all of theirs. `calls` are the module paths of the calls; `source` is the file that
    the model was read from, if any. `status` is `optimal` when no candidate of the search space is
    better under the cost model; `complete` is false when the search stopped before it saw all of them.
    `engine` names what runs the plan, `cluster_digest` the cluster that it was made for.
    `memory_limit_bytes` is per device; `gap` is the fraction by which a better plan might be faster.
    Gradients are summed in `gradient_precision` (empty: that of their parameter). `expert_slots` of
    every rank have replicas of experts, by how often these are chosen (`expert_placement`).

    Where stages differ, in devices, degrees or their share of the batch, `groups` has the devices and
    micro-batches of every stage, and `mesh` is the row of all of them; else it is empty: stages are
    equal parts of the mesh, and each runs all micro-batches. Layers then name their stage, and
    `shardings` has every function under the strategy of every group.
    """

    model: str
    model_digest: Digest
    cluster: Cluster
    mesh: Mesh
    global_batch: Count
    micro_batches: FewCount
    schedule: str
    precision: str
    optimizer: Optimizer
    memory_limit_bytes: Bytes
    stages: tuple[Stage, ...]
    layers: tuple[Layers, ...]
    shardings: tuple[Sharding, ...]
    prediction: Prediction
    status: Literal["optimal", "feasible"]
    gap: Share
    alternatives: tuple[Alternative, ...] = ()
    calls: tuple[str, ...] = ()
    source: str = ""
    seed: Integer = 0
    complete: bool = True
    compression: tuple[CompressionChoice, ...] = ()
    chunkings: tuple[Chunking, ...] = ()
    cluster_digest: Digest | None = None
    engine: str = "plait"
    gradient_precision: str = ""
    groups: tuple[DeviceGroup, ...] = ()
    expert_slots: SlotCount = 0

    def is_for(self, model: Model) -> bool:
        """Whether a model is the plan's, with as many samples and tokens in its batch."""
        tokens = round(self.prediction.tokens_per_second * self.prediction.step_seconds)
        same = self.global_batch == model.batch and tokens == model.tokens
        return same and self.model_digest == model.fingerprint()

    @property
    def digest(self) -> str:
        """Identity of the plan by content: wherever its model was read from."""
        return digest(replace(self, source=""))

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """The distinct strategies, in the order of the layers that first use them."""
        return tuple(dict.fromkeys(self.strategy_of(layers) for layers in self.layers))

    @property
    def strategy_text(self) -> str:
        """The strategies in one line: `dp=4 | dp=2,tp=2`."""
        return " | ".join(map(str, self.strategies))

    @property
    def peak_bytes(self) -> int:
        """Predicted peak of the fullest device."""
        return max(stage.peak_bytes for stage in self.stages)

    @property
    def model_chunks(self) -> tuple[Span, ...]:
        """Model chunks in the order of the model."""
        return self.chunk_map.collect([stage.model_chunks for stage in self.stages])

    @property
    def chunk_map(self) -> ChunkMap:
        """Which stage runs which model chunk."""
        return chunk_map(self.schedule, len(self.stages), self.chunks_per_stage)

    @property
    def chunks_per_stage(self) -> int:
        """Number of model chunks on every stage."""
        return len(self.stages[0].model_chunks)

    @property
    def passes(self) -> int:
        """How many of a step's micro-batches run each model chunk of a stage."""
        return self.chunk_map.passes(self.micro_batches)

    def stages_of(self, call: int) -> tuple[int, ...]:
        """The numbers of the stages that run a call for some micro-batch."""
        return tuple(s for s, stage in enumerate(self.stages) if stage.contains(call))

    def stage_of(self, call: int) -> int:
        """The number of the stage that runs a call; the first of several."""
        return self.stages_of(call)[0]

    def stage_of_layers(self, layers: Layers) -> int:
        """The number of the stage that runs these layers."""
        return self.stage_of(layers.first) if layers.stage is None else layers.stage

    def ranks_of(self, stage: int) -> range:
        """The ranks that run a stage."""
        if self.groups:
            first = sum(group.devices for group in self.groups[:stage])
            return range(first, first + self.groups[stage].devices)
        width = self.mesh.size // len(self.stages)
        return range(stage * width, (stage + 1) * width)

    def cluster_of(self, stage: int) -> Cluster:
        """The devices of a stage where stages are device groups, else those of all."""
        if not self.groups:
            return self.cluster
        group = self.groups[stage]
        part = self.cluster.parts[group.part] if self.cluster.parts else self.cluster
        return sub_cluster(part, group.devices)

    def memory_limit_of(self, stage: int) -> int:
        """Bytes per device that a stage may use."""
        return memory_limit(self.cluster_of(stage), self.memory_limit_bytes)

    def micro_batches_of(self, stage: int) -> int:
        """How many of a step's micro-batches run each model chunk of a stage."""
        return len(self.groups[stage].micro_batches) if self.groups else self.passes

    @property
    def fits(self) -> bool:
        """Whether no device needs more memory than it may use."""
        return all(s.peak_bytes <= self.memory_limit_of(n) for n, s in enumerate(self.stages))

    def strategy_of(self, layers: Layers) -> Strategy:
        return self.shardings[layers.sharding].strategy

    def chunking_of(self, layers: Layers) -> Chunking | None:
        """How these layers run in chunks; None where they run at once."""
        if not layers.memory.chunked:
            return None
        key = self.shardings[layers.sharding].function, layers.memory.chunks
        return next((c for c in self.chunkings if (c.function, c.chunks) == key), None)

    def layers_of(self, call: int) -> Layers:
        """The run of layers that a call belongs to."""
        return next(x for x in self.layers if x.first <= call < x.last)
