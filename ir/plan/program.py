"""A program: generated source files and the table of data they run on.

Names and sizes live in the table (`table.json`), never in the source: a name is data.
"""

from __future__ import annotations

from math import prod
from typing import Literal

import msgspec
from msgspec.structs import replace

from ..errors import UsageError
from ..files.json_files import digest
from ..model.layout import Factors, Layout
from ..model.mesh import Mesh
from ..model.model import BatchConstant
from ..model.tensor import TensorType
from ..ranges import Bytes, Count, Digest, FewCount, Index, ListedCount, SlotCount
from .flat_shard import FULL, FlatShard, Fraction

BUCKET_BYTES = 25 * 2**20  # of tensors that are communicated together, as one rank sends them
LEAST_BUCKET_BYTES = 2**20  # of buckets that are exchanged once per step, where there are others
STEP_BUCKETS = 8  # of such tensors at least: one runs beside nothing, two are in memory beside all
BUCKETS_AHEAD = 2  # of updated weights, on their way while a forward runs
SMALL_BYTES = 65_536  # buckets below it are not compressed
MAX_BUCKETS_IN_FLIGHT = 3  # compressed buckets in flight at once
PLAN_FILE = "plan.json"  # the plan beside the program that was compiled from it
PLACED_SCHEDULE = "placed"  # the schedule of a program whose ranks run operators, not stages


def step_bucket_bytes(total: float, most: float = BUCKET_BYTES) -> float:
    """Most bytes of a bucket of tensors that are exchanged once per step, of `total` bytes in all: at
    most `most`, and where that leaves several, a small part of them."""
    return min(most, max(LEAST_BUCKET_BYTES, total / STEP_BUCKETS))


Kernels = Literal["aten", "inductor"]


class NumberedName(msgspec.Struct, frozen=True):
    """Names that differ in one number: `before + str(start + i) + after` for the i-th call."""

    before: str
    start: Index
    after: str

    def at(self, i: int) -> str:
        return f"{self.before}{self.start + i}{self.after}"


class ParameterSpec(msgspec.Struct, frozen=True):
    """A parameter, buffer or constant of the program, and its layout on the ranks.

    `type` and `factors` are of the global tensor; `layout` has one placement per axis of its mesh
    (stages are always `R`). `stages` have it. `partial_axes` are the axes over which its gradient is
    left as partial sums, to be reduced once per step. One spec stands for `count` tensors whose names
    count up. `mesh` indexes the table's meshes; their zero axes shard the flattened local tensor
    further, zero3 a `fraction` of it. Where it is not `reached`, it has no gradient, and no step.
    With `sparse_gradient`, that is of the rows that a step read, and shards are of whole rows. `order`:
    which index of its first dimension lies at each place of it (empty: in their order).
    """

    name: NumberedName | str
    kind: Literal["parameter", "buffer", "constant"]
    type: TensorType
    factors: Factors
    layout: Layout
    stages: tuple[Index, ...]
    trainable: bool
    partial_axes: tuple[str, ...] = ()
    mesh: Index = 0
    aliases: tuple[str, ...] = ()
    values: tuple[float, ...] | None = None
    count: ListedCount = 1
    fraction: Fraction = FULL
    reached: bool = True
    sparse_gradient: bool = False
    order: tuple[Index, ...] = ()

    def flat_shard(self, shape: tuple[int, ...], degrees: tuple[int, int, int]) -> FlatShard:
        """How a local shard of this shape is sharded further over (zero3, zero2, zero1)."""
        row = shape[-1] if self.sparse_gradient else 1
        return FlatShard(prod(shape), degrees, self.fraction, row)

    def names(self) -> tuple[str, ...]:
        if isinstance(self.name, NumberedName):
            return tuple(self.name.at(i) for i in range(self.count))
        return (self.name,)


Names = NumberedName | str | tuple[str, ...]  # one pattern, one name for all, or a name per call


class CallRun(msgspec.Struct, frozen=True):
    """Calls `first` to `last - 1`, and the tensors that fill the function's state inputs.

    `mesh` numbers the table's meshes, along whose axes the function's collectives run;
    `seed` numbers the first call for its random streams; `updates` pairs positions in a call's
    results with the buffers they replace.
    """

    first: Index
    last: Index
    path: Names
    state_tensors: tuple[Names, ...]
    updates: tuple[tuple[Index, Names], ...] = ()
    mesh: Index = 0

    def name(self, names: Names, call: int) -> str:
        """The name that a call of this run takes from a pattern."""
        if isinstance(names, NumberedName):
            return names.at(call - self.first)
        return names if isinstance(names, str) else names[call - self.first]


class BatchTensor(msgspec.Struct, frozen=True):
    """A tensor of the global batch and the shard of it that a rank feeds to the batch-only functions.

    `layout` is on micro-batches and the table's mesh: a rank has its shard of every micro-batch, one
    after the other.
    """

    name: str
    path: tuple[str | int, ...]
    type: TensorType
    factors: Factors
    layout: Layout


class ProgramOutput(msgspec.Struct, frozen=True):
    """A tensor that the model's caller gets: result `position` of `call`, on the `stages` that run it.

    `layout` is on micro-batches and the table's mesh. An output that is a tensor of the batch has no
    call; `path` says where the batch keeps it.
    """

    type: TensorType
    factors: Factors
    layout: Layout
    call: int | None = None
    position: int = 0
    stages: tuple[int, ...] = ()
    path: tuple[str | int, ...] = ()


class StageValue(msgspec.Struct, frozen=True):
    """A value sent from one stage to the next: local type, and whether a gradient comes back."""

    name: str
    type: TensorType
    gradient: bool


def compressible(type_: TensorType) -> bool:
    """Whether an activation may be compressed: large, and of floating point."""
    return type_.is_float and type_.bytes >= SMALL_BYTES


class CompressedAxis(msgspec.Struct, frozen=True):
    """Compression programs (of `ir/compression`) for the collectives along a role of a mesh.

    `inner` neighbours along it share a node. `activations` and `rows` to experts cover their gradients
    as well. Gradient reductions that a compressed `optimizer` does itself use the programs of that one.
    """

    mesh: Index
    role: str
    inner: Count
    gradients: str = ""
    weights: str = ""
    activations: str = ""
    optimizer: str = ""
    rows: str = ""

    @property
    def programs(self) -> tuple[str, ...]:
        """Programs of the collectives that run once per step."""
        return tuple(filter(None, (self.gradients, self.weights)))

    @property
    def has_kernels(self) -> bool:
        """Whether anything is compressed by kernels; rows are not."""
        return bool(self.programs or self.activations or self.optimizer)

    @property
    def source(self) -> str:
        """The file of its kernels for CPUs."""
        return f"kernels/{self.role}_{self.mesh}.cpp"

    @property
    def triton_source(self) -> str:
        """The file of its kernels for GPUs."""
        return f"kernels/{self.role}_{self.mesh}.py"


class GroupValue(msgspec.Struct, frozen=True):
    """A value that passes between device groups: its type in one micro-batch, and how one group's
    ranks hold it and its gradient (None: it has none), a placement per axis of the group's mesh."""

    name: str
    type: TensorType
    factors: Factors
    layout: Layout
    gradient_layout: Layout | None = None


class GroupProgram(msgspec.Struct, frozen=True):
    """What the ranks of a device group run, from `first_rank` on: `calls` for these `micro_batches`,
    which stage `stage` of the program in `folder` computes, whose table is `table`. `received` and
    `sent` are the values that come from the group before and go to the group after."""

    folder: str
    stage: Index
    first_rank: Index
    calls: tuple[Index, Index]
    micro_batches: tuple[Index, ...]
    received: tuple[GroupValue, ...]
    sent: tuple[GroupValue, ...]
    table: ProgramTable

    @property
    def ranks(self) -> range:
        return range(self.first_rank, self.first_rank + self.table.mesh.size)


class ModuleFacts(msgspec.Struct, frozen=True):
    """What a program has as constants of some equal modules of the user's model, and their paths.

    `kind` is their class; `code` says what its methods and the functions that they call do, comparable
    under one version of Python; `settings` are plain attributes (rates, sizes, activation functions),
    `training` whether they are in training mode.
    """

    kind: str
    code: str
    settings: dict[str, str]
    training: bool
    paths: tuple[str, ...]


class ProgramTable(msgspec.Struct, frozen=True):
    """Everything a generated program needs to know that is not code.

    `mesh` is the common mesh of all device axes, `meshes` the same devices with the axes of each
    strategy, `loss_mesh` the index of the one under which the loss is computed. A stage has
    `chunks_per_stage` model chunks; `stage_transfers[i]` are the values that chunk i sends to i + 1.
    `modules` describe the user's module as it was traced; empty where there was none.
    With `master_weights` the optimizer steps on float32 copies of parameters of 16 bits. Gradients are
    summed in `gradient_precision` (empty: that of their parameter). Collectives run beside other work
    while at most `in_flight_bytes` of them do (0: each ends before what follows). `neighbours`: per
    mesh, along axes that span nodes and send rows to experts, the ranks that share one. `kernels` says
    whose run the operators of functions: torch's one by one, or those that inductor compiles.
    `expert_slots`: slots of a rank for replicas of experts, of every weight that is split by experts.
    `steps_on_host`: the optimizer steps on the device's host, on copies in its memory.
    """

    model: str
    model_digest: Digest
    plan_digest: Digest
    mesh: Mesh
    meshes: tuple[Mesh, ...]
    loss_mesh: Index
    stages: FewCount
    micro_batches: FewCount
    schedule: str
    global_batch: Count
    precision: str
    optimizer: str
    state_tensors: tuple[ParameterSpec, ...]
    calls: tuple[CallRun, ...]
    batch: tuple[BatchTensor, ...]
    stage_transfers: tuple[tuple[StageValue, ...], ...]
    source: str = ""
    compression: tuple[CompressedAxis, ...] = ()
    chunks_per_stage: FewCount = 1
    constants: tuple[BatchConstant, ...] = ()
    master_weights: bool = False
    gradient_precision: str = ""
    outputs: tuple[ProgramOutput, ...] = ()
    cluster_digest: Digest | None = None
    modules: tuple[ModuleFacts, ...] = ()
    kernels: Kernels = "aten"
    in_flight_bytes: Bytes = 0
    table_digest: Digest | None = None
    groups: tuple[GroupProgram, ...] = ()
    neighbours: tuple[dict[str, Count], ...] = ()
    expert_slots: SlotCount = 0
    steps_on_host: bool = False

    @property
    def scales_loss(self) -> bool:
        """Whether backward starts at a loss scale, for the small range of float16."""
        return self.master_weights and self.precision == "fp16"

    def stepped_dtype(self, spec: ParameterSpec) -> str:
        """The floating-point type of the copy of a tensor that the optimizer steps on."""
        wider = self.master_weights and spec.trainable and spec.type.is_half
        return "float32" if wider else spec.type.dtype

    def summed_dtype(self, spec: ParameterSpec) -> str:
        """The floating-point type in which gradients of a parameter are summed."""
        wider = self.gradient_precision == "fp32" and spec.type.is_half
        return "float32" if wider else spec.type.dtype


def sealed(table: ProgramTable) -> ProgramTable:
    """The table with the digest of its content as read from a file (where integers in place of
    floating-point numbers are such), by which the file is known to be whole."""
    bare = replace(table, table_digest=None)
    read = msgspec.json.decode(msgspec.json.encode(bare), type=ProgramTable)
    return replace(bare, table_digest=digest(read))


def chunk_function(direction: str, chunk: int, chunks: int) -> str:
    """Name of a chunk's `forward` or `backward` in its stage's module: `forward_1` if several."""
    return f"{direction}_{chunk}" if chunks > 1 else direction


class GeneratedProgram(msgspec.Struct, frozen=True):
    """Source files by path inside the program's folder, and the table."""

    files: tuple[tuple[str, str], ...]
    table: ProgramTable


def with_kernels(program: GeneratedProgram, kernels: Kernels) -> GeneratedProgram:
    """The program, whose functions run by these kernels. Raises UsageError for a placement by inductor,
    as it has no functions."""
    if kernels != "aten" and program.table.schedule == PLACED_SCHEDULE:
        raise UsageError(
            "a placement runs single operators, which inductor cannot fuse: compile a plan"
        )
    return replace(program, table=replace(program.table, kernels=kernels))


def for_module(program: GeneratedProgram, facts: tuple[ModuleFacts, ...]) -> GeneratedProgram:
    """The program, which is then opened for a module of these facts alone."""
    return replace(program, table=replace(program.table, modules=facts))
