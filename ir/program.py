"""A program: generated source files and the table of data they run on.

Names and sizes live in the table (`table.json`), never in the source: a name is data.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .layout import Factors, Layout
from .mesh import Mesh
from .plan.flat_shard import WHOLE, Fraction
from .tensor import TensorType

BUCKET_BYTES = 25 * 2**20  # of tensors that travel together
SMALL_BYTES = 65_536  # buckets below it travel uncompressed
TOGETHER = 3  # compressed buckets that are under way at once
PLACED = "placed"  # the schedule of a program whose ranks run operators, not stages


class Numbered(msgspec.Struct, frozen=True):
    """Names that differ in one number: `before + str(start + i) + after` for the i-th call."""

    before: str
    start: int
    after: str

    def at(self, i: int) -> str:
        return f"{self.before}{self.start + i}{self.after}"


class Held(msgspec.Struct, frozen=True):
    """A parameter, buffer or constant of the program, and how every rank keeps it.

    `type` and `factors` are of the whole tensor; `layout` has one state per axis of its mesh (stages
    are always `R`): a factor cut over `tp` axes, or whole. `stages` hold it. `sums` are the axes over
    which its gradient is left as partial sums, to be added up once per step. One entry stands for
    `count` tensors whose names count up. `mesh` numbers the table's meshes, whose roles decide which
    states are cut further, in flat pieces over the zero axes: over zero3 a `fraction` of the tensor.
    """

    name: Numbered | str
    kind: Literal["parameter", "buffer", "constant"]
    type: TensorType
    factors: Factors
    layout: Layout
    stages: tuple[int, ...]
    trainable: bool
    sums: tuple[str, ...] = ()
    mesh: int = 0
    aliases: tuple[str, ...] = ()
    values: tuple[float, ...] | None = None
    count: int = 1
    fraction: Fraction = WHOLE

    def names(self) -> tuple[str, ...]:
        if isinstance(self.name, Numbered):
            return tuple(self.name.at(i) for i in range(self.count))
        return (self.name,)


Names = Numbered | str | tuple[str, ...]  # one pattern, one name for all, or a name per call


class CallRun(msgspec.Struct, frozen=True):
    """Calls `first` to `last - 1`: which tensors fill the function's held inputs, per call.

    `mesh` numbers the table's meshes, along whose axes the function's collectives run;
    `seed` numbers the first call for its random streams; `updates` pairs positions in a call's
    results with the buffers they replace.
    """

    first: int
    last: int
    path: Names
    held: tuple[Names, ...]
    updates: tuple[tuple[int, Names], ...] = ()
    mesh: int = 0

    def name(self, names: Names, call: int) -> str:
        """The name that a call of this run takes from a pattern."""
        if isinstance(names, Numbered):
            return names.at(call - self.first)
        return names if isinstance(names, str) else names[call - self.first]


class BatchTensor(msgspec.Struct, frozen=True):
    """A tensor of the global batch and the piece of it that a rank feeds to the data functions.

    `layout` is on micro-batches and the table's grid: a rank has its piece of every micro-batch, one
    after the other.
    """

    name: str
    path: tuple[str | int, ...]
    type: TensorType
    factors: Factors
    layout: Layout


class StageValue(msgspec.Struct, frozen=True):
    """A value that crosses from one stage to the next: local type, and whether a gradient returns."""

    name: str
    type: TensorType
    gradient: bool


def compressible(kind: TensorType) -> bool:
    """Whether an activation is worth a message of its own: large, and of floating point."""
    return kind.is_float and kind.bytes >= SMALL_BYTES


class CompressedAxis(msgspec.Struct, frozen=True):
    """What travels compressed along a role of a mesh, by program of `ir/compression`; `inner`
    neighbours along it share a node. `activations` stand for their gradients as well. Sums that are left
    to an `optimizer` travel by its programs."""

    mesh: int
    role: str
    inner: int
    gradients: str = ""
    weights: str = ""
    activations: str = ""
    optimizer: str = ""

    @property
    def programs(self) -> tuple[str, ...]:
        """Of what travels once per step."""
        return tuple(filter(None, (self.gradients, self.weights)))

    @property
    def source(self) -> str:
        """The file of its kernels."""
        return f"kernels/{self.role}_{self.mesh}.cpp"


class Table(msgspec.Struct, frozen=True):
    """Everything a generated program needs to know that is not code.

    `mesh` is the grid of all device axes, `meshes` the same devices as each strategy names them by
    role, `loss` the number of the one under which the loss is made. The model is in `chunks` pieces
    per stage; `crossing[i]` are the values that piece i sends to piece i + 1.
    """

    model: str
    model_digest: str
    plan_digest: str
    mesh: Mesh
    meshes: tuple[Mesh, ...]
    loss: int
    stages: int
    micro_batches: int
    schedule: str
    global_batch: int
    precision: str
    optimizer: str
    held: tuple[Held, ...]
    calls: tuple[CallRun, ...]
    batch: tuple[BatchTensor, ...]
    crossing: tuple[tuple[StageValue, ...], ...]
    source: str = ""
    compression: tuple[CompressedAxis, ...] = ()
    chunks: int = 1


def piece_function(direction: str, chunk: int, chunks: int) -> str:
    """The name in a stage's module of a piece's `forward` or `backward`: `forward_1` where there are
    several."""
    return f"{direction}_{chunk}" if chunks > 1 else direction


class Program(msgspec.Struct, frozen=True):
    """Source files by path inside the program's folder, and the table."""

    files: tuple[tuple[str, str], ...]
    table: Table
