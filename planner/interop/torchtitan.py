"""torchtitan's configuration: sections of a TOML file, or flags `--parallelism.tensor_parallel_degree`.

dp_shard, with reshard_after_forward   zero3; without it zero2
local_batch_size                       samples of a rank, in micro-batches under a pipeline
module_fqns_per_model_part             stages, by torchtitan's names of modules
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from math import prod
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ...ir.plan.schedules import registry
from .engine_layout import EngineLayout, Recompute, told_schedule

NAME = "torchtitan"
SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "zbv": "ZBVZeroBubble",
    "dualpipev": "DualPipeV",
}  # Plait's names and torch's, which reads them in any case
FIRST, LAST = ("tok_embeddings",), ("norm", "lm_head")  # its modules beside layers.N
Degree = Annotated[int, Meta(ge=1, le=1 << 20)]
OpenDegree = Annotated[int, Meta(ge=-1, le=1 << 20)]


class _Parallelism(msgspec.Struct, kw_only=True):
    data_parallel_replicate_degree: Degree = 1
    data_parallel_shard_degree: OpenDegree = -1
    fsdp_reshard_after_forward: Literal["default", "always", "never"] = "default"
    tensor_parallel_degree: Degree = 1
    enable_sequence_parallel: bool = True
    enable_async_tensor_parallel: bool = False
    pipeline_parallel_degree: Degree = 1
    module_fqns_per_model_part: list[list[str]] | None = None
    pipeline_parallel_schedule: str = "1F1B"
    pipeline_parallel_microbatch_size: Degree = 1
    context_parallel_degree: Degree = 1
    expert_parallel_degree: Degree = 1


class _Training(msgspec.Struct, kw_only=True):
    local_batch_size: Degree = 8
    global_batch_size: OpenDegree = -1
    enable_cpu_offload: bool = False
    mixed_precision_param: Literal["bfloat16", "float32"] = "bfloat16"


class _Checkpoint(msgspec.Struct, kw_only=True):
    mode: Literal["none", "selective", "full", "memory_budget"] = "selective"


class _Model(msgspec.Struct, kw_only=True):
    converters: list[str] = []


class TorchtitanFile(msgspec.Struct, kw_only=True):
    """The sections that say how training is spread; others are the job's own."""

    model: _Model = msgspec.field(default_factory=_Model)
    parallelism: _Parallelism = msgspec.field(default_factory=_Parallelism)
    training: _Training = msgspec.field(default_factory=_Training)
    activation_checkpoint: _Checkpoint = msgspec.field(default_factory=_Checkpoint)


def read(file: TorchtitanFile, devices: int) -> EngineLayout:
    """The layout of a file on `devices` devices; raises ValueError where they do not go together."""
    p, training = file.parallelism, file.training
    others = prod((p.data_parallel_replicate_degree, p.tensor_parallel_degree,
                   p.pipeline_parallel_degree, p.context_parallel_degree))  # fmt: skip
    shards = p.data_parallel_shard_degree
    shards = devices // others if shards < 1 else shards
    if shards * others != devices:
        raise ValueError(
            f"parallelism: degrees of {others} times {shards} shards are not {devices} devices"
        )
    staged = p.pipeline_parallel_degree > 1
    gathers_again = p.fsdp_reshard_after_forward == "always" or (
        p.fsdp_reshard_after_forward == "default" and not staged
    )
    split = tuple(
        sum(name.startswith("layers.") for name in part)
        for part in p.module_fqns_per_model_part or ()
    )
    recompute: Recompute = "selective"
    if file.activation_checkpoint.mode in ("none", "full"):
        recompute = "none" if file.activation_checkpoint.mode == "none" else "full"
    data = p.data_parallel_replicate_degree * shards
    schedule = _schedule(p)
    chunks = _chunks(schedule, len(split) // p.pipeline_parallel_degree)
    return EngineLayout(
        engine=NAME,
        pipeline=p.pipeline_parallel_degree,
        model_chunks=chunks,
        schedule=told_schedule(schedule, chunks),
        split=split if staged else (),
        replicas=p.data_parallel_replicate_degree,
        shards=shards,
        zero_stage=(3 if gathers_again else 2) if shards > 1 else 0,
        experts=p.expert_parallel_degree,
        context=p.context_parallel_degree,
        tensor=p.tensor_parallel_degree,
        sequence_parallel=p.enable_sequence_parallel and p.tensor_parallel_degree > 1,
        recompute=recompute,
        global_batch=training.local_batch_size * data
        if training.global_batch_size < 1
        else training.global_batch_size,
        micro_batch=p.pipeline_parallel_microbatch_size if staged else training.local_batch_size,
        precision={"bfloat16": "bf16", "float32": "fp32"}[training.mixed_precision_param],
        unpriced=tuple(_unpriced(file)),
    )


def _schedule(p: _Parallelism) -> str:
    """The schedule by our name; raises ValueError for one that is not among them."""
    if p.pipeline_parallel_degree == 1:
        return "1f1b"
    names = {theirs.lower(): ours for ours, theirs in SCHEDULES.items()}
    schedule = names.get(p.pipeline_parallel_schedule.lower())
    if schedule is None:
        raise ValueError(
            f"parallelism.pipeline_parallel_schedule: no price for {p.pipeline_parallel_schedule}; "
            f"priced are {', '.join(SCHEDULES.values())}"
        )
    return schedule


def _chunks(schedule: str, split_chunks: int) -> int:
    """Model chunks of a stage; those of a split where the schedule takes any number."""
    fixed = registry.SCHEDULES[schedule].chunks
    return fixed or max(split_chunks, 2)


def _unpriced(file: TorchtitanFile) -> Iterator[str]:
    if file.training.enable_cpu_offload:
        yield "training.enable_cpu_offload: parameters, gradients and optimizer states on the host"
    for converter in file.model.converters:
        yield f"model.converters: {converter}"
    if file.parallelism.enable_async_tensor_parallel:
        yield "parallelism.enable_async_tensor_parallel"


def settings(layout: EngineLayout) -> dict[str, Any]:
    """The sections of a file that says a layout."""
    staged, layout_batch = layout.pipeline > 1, layout.global_batch or 0
    parallelism: dict[str, Any] = {
        "data_parallel_replicate_degree": layout.replicas,
        "data_parallel_shard_degree": layout.shards,
        "fsdp_reshard_after_forward": "never" if layout.zero_stage == 2 else "always",
        "tensor_parallel_degree": layout.tensor,
        "enable_sequence_parallel": layout.sequence_parallel or layout.tensor == 1,
        "pipeline_parallel_degree": layout.pipeline,
        "context_parallel_degree": layout.context,
        "expert_parallel_degree": layout.experts,
    }
    if staged:
        parallelism |= {
            "pipeline_parallel_schedule": SCHEDULES[layout.pipeline_schedule],
            "pipeline_parallel_microbatch_size": layout.micro_batch or 1,
        }
    if staged and layout.split:
        parallelism["module_fqns_per_model_part"] = _modules(layout.split)
    local = layout_batch // layout.data if staged else layout.micro_batch or 1
    return {
        "training": {
            "local_batch_size": max(local, 1),
            "global_batch_size": layout_batch or -1,
            "mixed_precision_param": "float32" if layout.precision == "fp32" else "bfloat16",
        },
        "parallelism": parallelism,
        "activation_checkpoint": {"mode": layout.recompute},
    }


def _modules(split: tuple[int, ...]) -> list[list[str]]:
    """torchtitan's names of the modules of every model chunk."""
    ends = list(accumulate(split))
    parts = [
        [f"layers.{i}" for i in range(start, end)]
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    parts[0], parts[-1] = [*FIRST, *parts[0]], [*parts[-1], *LAST]
    return parts
