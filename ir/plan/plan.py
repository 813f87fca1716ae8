"""A plan: who does what, and what it is predicted to cost. Data: codegen needs nothing else."""

from __future__ import annotations

from typing import Literal

import msgspec

from ..analysis.axes import Axes
from ..devices.cluster import Cluster
from ..lowering.chunk import Division, Form, finer_axes, piece_form
from ..lowering.forward_backward import Variant
from ..lowering.localize import Boundary, Choices
from ..mesh import Mesh
from ..model import Function
from .strategy import Strategy
from .workload import Large, Piece, Share

Memory = Literal[
    "keep",
    "save 75%",
    "save 50%",
    "save 25%",
    "recompute",
    "offload",
    "offload 75%",
    "offload 50%",
    "offload 25%",
    "offload inputs",
    "split 2",
    "split 4",
    "split 8",
    "split 16",
    "split 32",
    "split 64",
]
ENDS: tuple[Memory, ...] = ("keep", "recompute")  # all that backward reads, and the inputs alone
# what is saved, from end to end
PARTS: dict[Memory, float] = {
    "save 75%": 0.75,
    "save 50%": 0.5,
    "save 25%": 0.25,
    "offload 75%": 0.75,
    "offload 50%": 0.5,
    "offload 25%": 0.25,
}
# what is saved waits in host memory
HOSTED: tuple[Memory, ...] = (
    "offload",
    "offload 75%",
    "offload 50%",
    "offload 25%",
    "offload inputs",
)
# inputs are saved, and both ways run in pieces, one after the other
DIVIDED: dict[Memory, int] = {
    "split 2": 2,
    "split 4": 4,
    "split 8": 8,
    "split 16": 16,
    "split 32": 32,
    "split 64": 64,
}


class Sharding(msgspec.Struct, frozen=True):
    """How one function is split: per operator and mesh axis (`mesh` without stages, `micro` first)
    the number of the option taken, and the layouts at its boundary."""

    function: str
    strategy: Strategy
    mesh: Mesh
    choices: Choices
    boundary: Boundary

    def form(self, axes: Axes) -> Form:
        """What localizes the function, given its axes."""
        return Form(axes, self.mesh, self.choices, self.boundary)


class Layers(msgspec.Struct, frozen=True):
    """Calls `first` to `last - 1`, all of one function, in one stage, with one decision.

    `sharding` indexes the plan's shardings; times are per call and micro-batch, predicted from the
    work of `forward` and `backward`. `once`: they run once per step, on every stage. `saved`: the
    values of the local form that are kept where `memory` saves a part, and `makers` what makes them.
    """

    first: int
    last: int
    sharding: int
    memory: Memory
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    forward: Piece = Piece()
    backward: Piece = Piece()
    once: bool = False
    saved: tuple[int, ...] = ()
    makers: tuple[str, ...] = ()

    @property
    def variant(self) -> Variant:
        """What forward leaves for backward, as `ir.pieces` takes it."""
        return variant(self.memory, self.saved)


def variant(memory: Memory, saved: tuple[int, ...]) -> Variant:
    """What forward leaves for backward; `saved` where a part is saved."""
    if memory in PARTS:
        return saved
    return "keep" if memory in ("keep", "offload") else "recompute"


Span = tuple[int, int]  # calls from the first to before the last


class Stage(msgspec.Struct, frozen=True):
    """A pipeline stage: its calls, and what a device of it is predicted to need.

    `pieces` are spans of calls, more than one where the schedule interleaves; times per micro-batch are
    of all of them, `transfer_bytes` are sent on from one, of them `large`, before compression. `shares`
    are its calls by strategy; `passage_seconds` bring values from one to the other and gradients back.
    `host_bytes`: of host memory for each of its devices. `waiting` micro-batches wait for backward at
    the worst moment.
    """

    pieces: tuple[Span, ...]
    waiting: float = 1.0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    communication_seconds: float = 0.0
    sync_seconds: float = 0.0
    transfer_bytes: int = 0
    memory: tuple[tuple[str, int], ...] = ()
    shares: tuple[Share, ...] = ()
    passage_seconds: float = 0.0
    host_bytes: int = 0
    large: Large = Large()

    @property
    def peak_bytes(self) -> int:
        return sum(amount for _, amount in self.memory)

    def holds(self, call: int) -> bool:
        return any(first <= call < last for first, last in self.pieces)


class Prediction(msgspec.Struct, frozen=True):
    step_seconds: float = 0.0
    tokens_per_second: float = 0.0
    samples_per_second: float = 0.0
    mfu: float = 0.0
    bubble: float = 0.0
    model_flops: float = 0.0


class Alternative(msgspec.Struct, frozen=True):
    """A strategy that was priced and not taken, with so many pieces of the model per stage."""

    word: str
    micro_batches: int
    memory: str
    step_seconds: float
    peak_bytes: int
    fits: bool
    chunks: int = 1

    @property
    def name(self) -> str:
        """`pp=4,dp=2`, `pp=4,dp=2 in 3 pieces`."""
        return self.word + (f" in {self.chunks} pieces" if self.chunks > 1 else "")


class Compressed(msgspec.Struct, frozen=True):
    """What travels compressed along one role of a strategy: once per step gradients or weights, along
    its batch axes; or activations and their gradients, in every micro-batch, between stages and in
    sums over ranks that split operators. `program` names an entry of `ir/compression`."""

    strategy: Strategy
    role: str
    subject: Literal["gradients", "weights", "activations"]
    program: str


class Optimizer(msgspec.Struct, frozen=True):
    """What the optimizer keeps per parameter: number of states, and bytes of each element."""

    name: str
    states: int
    state_bytes: int


class Plan(msgspec.Struct, frozen=True):
    """The whole decision. `mesh` has every device axis, stages first; rank r sits at its r-th place.

    Layers may have different strategies, of as many stages each; `mesh` is then their common grid.
    `calls` are the module paths of the calls, `source` what the model was read from, if it was a file.
    `status` is `optimal` when no member of the searched space is better under the cost model;
    `complete` is false when the search was stopped before it had met all of them.
    """

    model: str
    model_digest: str
    cluster: Cluster
    mesh: Mesh
    global_batch: int
    micro_batches: int
    schedule: str
    precision: str
    optimizer: Optimizer
    budget_bytes: int
    stages: tuple[Stage, ...]
    layers: tuple[Layers, ...]
    shardings: tuple[Sharding, ...]
    prediction: Prediction
    status: Literal["optimal", "feasible"]
    gap: float
    alternatives: tuple[Alternative, ...] = ()
    calls: tuple[str, ...] = ()
    source: str = ""
    seed: int = 0
    complete: bool = True
    compression: tuple[Compressed, ...] = ()
    divisions: tuple[Division, ...] = ()

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """The distinct strategies, in the order of the layers that first use them."""
        return tuple(dict.fromkeys(self.strategy_of(layers) for layers in self.layers))

    @property
    def word(self) -> str:
        """The strategies in one line: `dp=4 | dp=2,tp=2`."""
        return " | ".join(map(str, self.strategies))

    @property
    def peak_bytes(self) -> int:
        """Of the fullest device."""
        return max(stage.peak_bytes for stage in self.stages)

    @property
    def pieces(self) -> tuple[Span, ...]:
        """The pieces of the model in its order; piece i is run by stage i modulo their number."""
        rows = zip(*(stage.pieces for stage in self.stages), strict=True)
        return tuple(piece for row in rows for piece in row)

    @property
    def chunks(self) -> int:
        """Pieces per stage."""
        return len(self.stages[0].pieces)

    def stage_of(self, call: int) -> int:
        """The number of the stage that runs a call."""
        return next(s for s, stage in enumerate(self.stages) if stage.holds(call))

    def strategy_of(self, layers: Layers) -> Strategy:
        return self.shardings[layers.sharding].strategy

    def division_of(self, layers: Layers) -> Division | None:
        """How these layers run in pieces, if they do."""
        name, ways = self.shardings[layers.sharding].function, DIVIDED.get(layers.memory)
        return next((d for d in self.divisions if (d.function, d.ways) == (name, ways)), None)

    def form_of(self, layers: Layers, function: Function, axes: Axes) -> Form:
        """How a device computes these layers; where they run in pieces, one of them."""
        form, division = self.shardings[layers.sharding].form(axes), self.division_of(layers)
        if division is None:
            return form
        finer = finer_axes(function, axes, dict(division.places), division.outer)
        return piece_form(function, axes, finer, form, division)

    def layers_of(self, call: int) -> Layers:
        """The run of layers that a call belongs to."""
        return next(x for x in self.layers if x.first <= call < x.last)
