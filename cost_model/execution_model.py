"""Execution models: what a framework overlaps, fuses and stores in which precision, beyond the plan.

The defaults describe generated programs. Other frameworks are data, one TOML file each in
`execution_models`: fields of `ExecutionModel`, and for each a source."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ..ir.devices.cluster_file import TomlTable, decode_tables
from ..ir.errors import UsageError
from ..ir.model.loops import Work
from ..ir.model.tensor import ITEM_BYTES
from ..ir.plan.plan import STEP_VECTORS, Optimizer
from ..ir.plan.routing import Routing
from ..ir.unknown_name import unknown_name

COMPILED: tuple[Work, ...] = ("pointwise", "reduce")  # what a compiler fuses
Overlap = Literal["gradients", "weights", "transfers", "slice", "tp", "cp", "ep"]
Text = Annotated[str, Meta(min_length=1)]
FLASH_1_SLOWDOWN = 2.0  # behind FlashAttention-2, forward and backward (Dao 2023)
FLASH_2_SLOWDOWN = 1.75  # 1.5 to 2.0 times behind FlashAttention-3 on H100 (Shah et al. 2024)
CAST_BYTES = 4.0  # of an element quantised once: two read, one written in either orientation
PRODUCT_BYTES = 9.0  # of three products of square matrices, per element that is quantised


class ExecutionModel(msgspec.Struct, frozen=True):
    """How a framework executes a plan.

    `overlaps`: what travels beside compute: gradients beside backward, weights beside the compute
    before them, transfers between stages, and collectives of operators along an axis. `fused`: kinds
    of work whose neighbouring operators run as one kernel. `rematerialised`: fused backward kernels
    recompute values that only they read, and reuse the memory of operands that die.
    `fused_attention`: scores are never written to memory; `attention` is the kernel: the vendor's, the
    portable one that later devices outgrew, or the first that there was. `dispatch_seconds`: host time
    per operator, or per kernel of a `compiled` program; a device never finishes before its host, and
    where it `blocks_launches` starts no operator before the host saw the last one end. `matrix_dtype`:
    that of matrix products; None: that of their operands. `cast_bytes`: bytes moved to quantise an
    element for them. `gradient_item_bytes`: bytes per element of an accumulated gradient, which is
    also what travels; None: those of its parameter. `stepped_item_bytes`: bytes per element of the
    copy that the optimizer steps on, and of its gradient then; None: those of a gradient.
    `step_vectors`: tensors of a parameter's size that an optimizer makes for itself while it steps, of
    all parameters at once if it `steps_at_once`; where it `steps_on_host`, its states and what it makes
    are not on the device. `unreduced_item_bytes`: bytes per element of gradients
    of the parameters' precision that stay beside the accumulated ones. `loss_copies`: fp32 tensors of
    the logits' size that the loss's backward makes beside its result, one more where classes are split.
    `reduces_in_place`: gradients summed once per step are added up, and travel, in flat buffers.
    `keeps_sent`: activations that were sent to the next stage stay until their gradients come.
    `reduces_per_step`: gradients that ZeRO shards travel once per step, and stay whole until then;
    else after every micro-batch. `contiguous_buffers`: gradients live in persistent flat buffers;
    nothing is copied to be sent. `frees_per_call`: saved activations are freed call by call during
    backward, not at its end.
    `exposes_ends`: what overlaps runs beside single calls or products, so that the first gather and the
    last reduction of a pass, or of a call's slices, run beside nothing. `calls_alone`: so many calls of
    other frameworks' passes are gathered before anything can run, and reduced when nothing is left.
    `bucket_elements`: gradients that are reduced once per step, and weights that are gathered once
    updated, travel in messages of as many elements: at least, and per rank that they are reduced over
    (none: not said); the first gather and the last reduction run beside nothing. `copies_gathered`:
    weights are copied out of the buffer that they arrive in, gradients into that which they leave from.
    `clips_gradients`: a step takes the norm of all gradients and scales them. `overlaps_shards_alone`:
    gradients and weights travel beside compute where weights are sharded, in line where they are whole.
    `shards_replicated_states`: ZeRO also shards optimizer states along the model axes over which the
    weight is replicated. `shards_over`: axes inside a replica whose ranks ZeRO counts among those it
    shards over. `whole_in_pipelines`: beneath a pipeline gathered weights and gradients stay whole from
    the first micro-batch to the last, so that ZeRO shards optimizer states alone. `saves_dispatched`:
    backward of experts reads tokens as they were received and hidden units, instead of fetching and
    computing them again. `dispatches_once`: a token goes once to every node that has some of its
    experts, and is copied there. `kernel_per_expert`: products of every expert are kernels of their own.
    `expert_dispatch_seconds`: seconds that a device waits in forward and in backward of a layer of
    experts, whose tokens the host counts before it launches what follows. `expert_tile_rows`: rows that
    products of an expert are padded to (0: none). `routing`: how tokens choose experts; of
    `rows_per_centroid` that are nearly equal one is sent to them. `chunks`: model
    chunks per pipeline stage (interleaved 1F1B).
    `even_layers`: stages have equal layer counts instead of balanced times; `fills_stages`: each ends
    behind the call with which it has more than its share of the products' flops. `recompute_every`:
    every n-th of the layers that may recompute does. `keeps_gathered`: operands that were gathered along
    an axis of operators stay for backward, which elsewhere gathers them again. `gathers_singly`: sharded
    weights are gathered for one product, not for a call. `casts_weights`: weights are in full precision
    alone, and those of fewer bytes are made where they are read. `all_reduces_shards`: where
    ZeRO does not shard weights, gradients are summed everywhere before all but a part are dropped.
    `saves_quantised`: operands of products of fewer bits wait for backward as quantised;
    `caches_quantised`: weights stay beside their quantised copies."""

    overlaps: tuple[Overlap, ...] = ()
    tensor_share: float = 1.0
    fused: tuple[Work, ...] = ()
    rematerialised: bool = False
    fused_attention: bool = True
    attention: Literal["vendor", "portable", "first"] = "portable"
    dispatch_seconds: float = 0.0
    blocks_launches: bool = False
    compiled: bool = False
    matrix_dtype: str | None = None
    cast_bytes: float = CAST_BYTES
    gradient_item_bytes: int | None = None
    reduces_per_step: bool = False
    stepped_item_bytes: int | None = None
    step_vectors: int = STEP_VECTORS
    steps_at_once: bool = False
    steps_on_host: bool = False
    unreduced_item_bytes: int = 0
    loss_copies: int = 0
    reduces_in_place: bool = True
    keeps_sent: bool = False
    contiguous_buffers: bool = False
    frees_per_call: bool = True
    exposes_ends: bool = False
    calls_alone: int = 0
    bucket_elements: tuple[int, int] | None = None
    copies_gathered: bool = False
    clips_gradients: bool = False
    overlaps_shards_alone: bool = False
    shards_replicated_states: bool = False
    shards_over: tuple[Literal["cp"], ...] = ()
    whole_in_pipelines: bool = False
    saves_dispatched: bool = False
    dispatches_once: bool = False
    kernel_per_expert: bool = False
    expert_dispatch_seconds: tuple[float, float] = (0.0, 0.0)
    expert_tile_rows: int = 0
    routing: Routing = Routing()
    rows_per_centroid: int = 1
    chunks: int = 1
    even_layers: bool = False
    fills_stages: bool = False
    recompute_every: int = 1
    keeps_gathered: bool = False
    gathers_singly: bool = False
    casts_weights: bool = False
    all_reduces_shards: bool = False
    saves_quantised: bool = False
    caches_quantised: bool = False

    @property
    def cast_traffic(self) -> float:
        """Bytes moved to quantise the operands of products, per byte that the products move: in a
        layer's three, either operand of the first and the gradient are quantised once."""
        return self.cast_bytes / PRODUCT_BYTES

    def exchanging(self, shards_weights: bool) -> ExecutionModel:
        """This model where exchanges of weights are sharded, or whole."""
        if shards_weights or not self.overlaps_shards_alone:
            return self
        others = (o for o in self.overlaps if o not in ("gradients", "weights"))
        return msgspec.structs.replace(self, overlaps=tuple(others))

    def scattering(self, sharded_kinds: Collection[str]) -> str:
        """The collective that leaves every rank its part of summed gradients."""
        whole = self.all_reduces_shards and "parameter" not in sharded_kinds
        return "all_reduce" if whole else "reduce_scatter"

    def attention_slowdown(self, peak_flops: Mapping[str, float]) -> float:
        """Time of the attention kernel over that of the device's best. Devices with products of 8-bit
        floats have units for asynchronous copies and products, which the portable kernel leaves idle."""
        first = FLASH_1_SLOWDOWN if self.attention == "first" else 1.0
        outgrown = self.attention != "vendor" and "float8_e4m3fn" in peak_flops
        return first * (FLASH_2_SLOWDOWN if outgrown else 1.0)


GENERATED = ExecutionModel(overlaps=("gradients", "weights", "slice"), exposes_ends=True)


def generated(optimizer: Optimizer, gradient_precision: str, item_bytes: int) -> ExecutionModel:
    """How generated programs execute with an optimizer: gradients of parameters of `item_bytes` an
    element are summed in a precision (empty: that of the parameters)."""
    full = ITEM_BYTES["float32"]
    widens = gradient_precision == "fp32" and item_bytes < full
    return msgspec.structs.replace(
        GENERATED,
        gradient_item_bytes=full if widens else None,
        stepped_item_bytes=full if optimizer.master_weights else None,
        step_vectors=optimizer.step_vectors,
    )


class ExecutionModelFile(TomlTable, frozen=True, kw_only=True):
    """A shipped execution model. `names`: parts of the names of frameworks that run so, lower case, in
    years up to `until`; `model`: fields of `ExecutionModel`, `fp16`: those that differ where weights are
    fp16; `sources`: where each is read."""

    about: Text
    names: tuple[Text, ...]
    until: int | None = None
    model: dict[str, Any]
    fp16: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    sources: dict[str, Text]

    def execution(self, dtype: str = "") -> ExecutionModel:
        """The execution model for weights of a torch type."""
        fields = self.model | (self.fp16 if dtype == "float16" else {})
        return msgspec.convert(fields, ExecutionModel)


@cache
def execution_model_files() -> dict[str, ExecutionModelFile]:
    """The shipped execution models by name."""
    folder = resources.files(__package__ or "").joinpath("execution_models")
    files = sorted((Path(str(file)) for file in folder.iterdir()), key=str)
    return {f.stem: decode_tables(f, ExecutionModelFile) for f in files if f.suffix == ".toml"}


def execution_model(name: str, dtype: str = "") -> ExecutionModel:
    """A shipped execution model for weights of a torch type; raises UsageError for unknown names."""
    files = execution_model_files()
    if name not in files:
        raise UsageError(unknown_name("engine", name, files))
    return files[name].execution(dtype)


def execution_model_of_framework(framework: str, year: int) -> str | None:
    """The name of the execution model of a framework as people call it, in a year; the longest name
    that is a part of the text decides. None: not known."""
    matches = [
        (len(part), file.until is not None, name)
        for name, file in execution_model_files().items()
        for part in file.names
        if part in framework.lower() and (file.until is None or year <= file.until)
    ]
    return max(matches)[2] if matches else None


# Engines that plans are made for, by the execution model of what runs them
ENGINE_MODELS = {
    "torch": "fsdp2",
    "torchtitan": "torchtitan",
    "megatron": "megatron",
    "deepspeed": "deepspeed",
    "accelerate": "fsdp2",
    "galvatron": "fsdp2",
}


def execution_of(
    engine: str,
    optimizer: Optimizer,
    gradient_precision: str,
    item_bytes: int,
    grouped: bool = False,
) -> ExecutionModel:
    """How an engine, or a generated program, trains with an optimizer (see `generated`); `grouped`:
    gradients are also summed over device groups."""
    ran = engine_execution(engine) or generated(optimizer, gradient_precision, item_bytes)
    return msgspec.structs.replace(
        ran, steps_on_host=optimizer.on_host, reduces_in_place=not grouped
    )


def engine_execution(engine: str) -> ExecutionModel | None:
    """How an engine runs a plan; None for generated programs (see `generated`)."""
    name = ENGINE_MODELS.get(engine)
    return None if name is None else execution_model(name)
