"""One described run: read from the columns of a row, checked, and told apart from what is not known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import gcd

import msgspec

from ...cost_model.execution_model import execution_model_of_framework
from ...ir.errors import UsageError
from ...ir.plan.routing import BALANCED, Routing, parse_routing
from ...ir.plan.strategy import Strategy

Row = Mapping[str, str]
# fmt: off
RECOMPUTE = {
    "none": "none", "full": "full", "selective_layer": "half", "selective_op": "operators",
    "partial": "half", "selective": "attention", "core_attn": "attention", "uniform": "full",
    "yes": "full", "true": "full", "1": "full", "no": "none", "false": "none", "0": "none",
    # modules whose recomputation takes next to no time
    "layernorm": "none", "moe": "none", "mla": "none", "mlp": "none",
}
COMPILED = ("torchtitan", "torchtitan-2024", "fsdp1")  # fsdp2 whose layers are compiled
OFFLOADED = {  # what a row's words for what waits in host memory contain
    "": "", "none": "", "no": "", "0": "", "false": "",
    "optim": "optimizer",
    "activation": "activations", "input": "activations", "checkpoint": "activations",
}
# fmt: on
UNKNOWN = "unknown"  # what a row recomputes, where nothing is printed
THIS_YEAR = 2026  # of rows that name none
TORCHTITAN_YEAR = 2024  # when it was published; who sharded weights before that had FSDP
RECIPES = (  # what the name of a precision contains, the narrower first
    (r"nvfp4|mxfp4|fp4", "nvfp4"),
    (r"mxfp8|fp8.*mx|fp8.*block.*mx", "mxfp8"),
    (r"fp8.*block|block.*fp8", "fp8-blockwise"),
    (r"fp8.*row|row.*fp8", "fp8-rowwise"),
    (r"fp8.*(tensor|cs|current)", "fp8-tensorwise"),
    (r"fp8|float8|e4m3", "fp8"),
    (r"bf16|bfloat16", "bf16"),
    (r"fp16|float16|half", "fp16"),
    (r"fp32|float32|tf32", "fp32"),
)


class UnmodelledError(UsageError):
    """A row that lacks something, or describes what the model does not know."""


class Layout(msgspec.Struct, frozen=True):
    """How a run is spread. `data`: replicas of the batch, expert ranks included; `shard_group`: how
    many of them share states under zero; `tensor_tokens`: tokens split between tensor operators."""

    data: int
    zero_stage: int
    shard_group: int
    tensor: int
    tensor_tokens: bool
    pipeline: int
    chunks: int
    context: int
    experts: int

    @property
    def strategy(self) -> Strategy:
        """Axes from the outside in: stages, replicas, then those that communicate most."""
        replicas = self.data // self.experts
        sharded = min(self.shard_group, replicas) if self.zero_stage else 1
        axes = (
            ("pp", self.pipeline),
            ("dp", replicas // sharded),
            (f"zero{self.zero_stage}", sharded),
            ("ep", self.experts),
            ("cp", self.context),
            ("tp", self.tensor),
        )
        sequence_parallel = (("sp", 1),) if self.tensor_tokens and self.tensor > 1 else ()
        joins = self.zero_stage > 0 and self.context > 1  # ZeRO may shard over context ranks alone
        used = (a for a in axes if a[1] > 1 or (joins and a[0].startswith("zero")))
        return Strategy((*used, *sequence_parallel))


class RunConfig(msgspec.Struct, frozen=True):
    """A configuration: layout, batch, memory action, precision, and the machine it ran on.
    `tensor_overlap`: whether collectives of tensor parallelism ran beside compute (None: not said).
    `offload`: what waits in host memory: what forward saves (`activations`), the `optimizer` with its
    states, or nothing."""

    layers: int
    layout: Layout
    micro_batch: int
    global_batch: int
    recompute: str
    fused_attention: bool
    engine: str
    precision: str
    device: str
    device_memory_gb: float
    devices: int
    devices_per_node: int
    network_gbit_per_second: float
    tensor_overlap: bool | None = None
    routing: Routing = Routing()
    offload: str = ""

    @property
    def micro_batches(self) -> int:
        return self.global_batch // (self.layout.data * self.micro_batch)


def read_run(row: Row) -> RunConfig:
    """The run of a row; raises UnmodelledError naming the column that is missing or makes no sense."""
    layout = read_layout(row)
    micro_batch = integer(row, "microbatch", 1)
    accumulated = integer(row, "grad_accum", 1)
    run = RunConfig(
        layers=integer(row, "layers"),
        layout=layout,
        micro_batch=micro_batch,
        global_batch=integer(row, "global_batch", layout.data * micro_batch * accumulated),
        recompute=parse_recompute(row.get("recompute", "")),
        fused_attention=flag(row, "flash_attn", True),
        engine=read_engine(row, layout),
        precision=parse_precision(row.get("precision", "") or "bf16"),
        device=row.get("gpu", ""),
        device_memory_gb=number(row, "gpu_mem_gb", 0.0),
        devices=integer(row, "num_gpus"),
        devices_per_node=integer(row, "gpus_per_node", 8),
        network_gbit_per_second=number(row, "inter_node_gbps_per_gpu", 0.0),
        tensor_overlap=flag(row, "tp_overlap", False) if row.get("tp_overlap") else None,
        routing=parse_routing(row.get("routing") or BALANCED),
        offload=parse_offload(row.get("offload", "")),
    )
    if run.layout.strategy.devices != run.devices:
        raise UnmodelledError(
            f"{run.layout.strategy} is for {run.layout.strategy.devices} devices, not {run.devices}"
        )
    if run.micro_batches * layout.data * micro_batch != run.global_batch:
        raise UnmodelledError(
            f"global_batch {run.global_batch} is not a multiple of {layout.data} replicas of "
            f"micro-batches of {micro_batch}"
        )
    return run


def read_engine(row: Row, layout: Layout) -> str:
    """The execution model of a row's framework; that of an unknown one is the state of the art, in its
    year, of what it does: sharded weights alone, or anything else."""
    engine = _framework(row)
    if engine is None:
        sharded = layout.zero_stage == 3 and layout.pipeline == 1
        year = integer(row, "year", THIS_YEAR)
        usual = "torchtitan" if year >= TORCHTITAN_YEAR else "fsdp"
        usual = usual if sharded else "megatron"
        engine = execution_model_of_framework(usual, year) or usual
    if row.get("compile") and engine in (*COMPILED, "fsdp2"):
        compiled = engine if engine in COMPILED else COMPILED[0]
        return compiled if flag(row, "compile", True) else "fsdp2"
    return engine


def _framework(row: Row) -> str | None:
    """The execution model that a row names; None where it is not known."""
    framework = row.get("framework", "")
    return execution_model_of_framework(framework, integer(row, "year", THIS_YEAR))


def is_known_framework(row: Row) -> bool:
    """Whether a row's framework has an execution model of its own."""
    return _framework(row) is not None


def read_layout(row: Row) -> Layout:
    tensor, pipeline = integer(row, "tp", 1), integer(row, "pp", 1)
    context, experts = integer(row, "cp", 1), integer(row, "ep", 1)
    data = integer(row, "dp", max(integer(row, "num_gpus") // (tensor * pipeline * context), 1))
    experts = gcd(
        experts, data
    )  # others lie over tensor ranks, which split experts' insides as well
    group = integer(row, "shard_group", 0) or data // experts
    if (data // experts) % min(group, data // experts):
        raise UnmodelledError(f"shard_group {group} does not divide dp {data}")
    return Layout(
        data=data,
        zero_stage=integer(row, "zero_stage", 0),
        shard_group=group,
        tensor=tensor,
        tensor_tokens=flag(row, "sp", False),
        pipeline=pipeline,
        chunks=integer(row, "vpp", 1),
        context=context,
        experts=experts,
    )


def parse_precision(text: str) -> str:
    """`bf16` of `amp_bf16` or `BF16-mixed`, `mxfp8` of `fp8-mx`: the type of products is what counts."""
    lower = text.lower()
    for pattern, precision in RECIPES:
        if re.search(pattern, lower):
            return precision
    raise UnmodelledError(f"precision {text!r} is not known")


def parse_recompute(text: str) -> str:
    """`full`, `half` of the layers, all `operators` but attention and every second product, `attention`
    or `none`; no text, or several in one: unknown."""
    if "/" in text:
        return UNKNOWN
    for start, meaning in RECOMPUTE.items():
        if text.lower().startswith(start):
            return meaning
    if text:
        raise UnmodelledError(f"recompute {text!r} is not known: {', '.join(RECOMPUTE)}")
    return UNKNOWN


def parse_offload(text: str) -> str:
    """`activations` (or their `inputs`, as checkpoints of layers), the `optimizer`, or nothing."""
    lower = text.lower()
    if lower in OFFLOADED:
        return OFFLOADED[lower]
    for part, meaning in OFFLOADED.items():
        if meaning and part in lower:
            return meaning
    raise UnmodelledError(f"offload {text!r} is not known: activations, optimizer or none")


def number(row: Row, column: str, default: float | None = None) -> float:
    text = row.get(column) or ""
    try:
        value = float(text) if text else default
    except ValueError:
        raise UnmodelledError(f"{column}: {text!r} is not a number") from None
    if value is None:
        raise UnmodelledError(f"{column} is missing")
    if not 0 <= value < 1e15:
        raise UnmodelledError(f"{column}: {value} makes no sense")
    return value


def integer(row: Row, column: str, default: int | None = None) -> int:
    value = number(row, column, default)
    if value != int(value) or (value < 1 and default != 0 and column != "zero_stage"):
        raise UnmodelledError(f"{column}: {value} is not a number of things")
    return int(value)


def flag(row: Row, column: str, default: bool) -> bool:
    return bool(number(row, column, float(default)))
