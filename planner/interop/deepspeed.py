"""DeepSpeed's JSON configuration: ZeRO, AutoTP, AutoEP, Ulysses, pipeline stages.

`"auto"`, which the Trainer fills in, leaves a number open. Activations are recomputed where the number
of checkpoints is not 0; the calls themselves stand in the model's code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .engine_layout import EngineLayout

NAME = "deepspeed"
Degree = Annotated[int, Meta(ge=1, le=1 << 20)]
Open = Degree | Literal["auto"] | None


class _Offload(msgspec.Struct, kw_only=True):
    device: Literal["none", "cpu", "nvme"] = "none"


class _Zero(msgspec.Struct, kw_only=True):
    stage: Annotated[int, Meta(ge=0, le=3)] = 0
    offload_optimizer: _Offload = msgspec.field(default_factory=_Offload)
    offload_param: _Offload = msgspec.field(default_factory=_Offload)
    zero_hpz_partition_size: Degree = 1
    zero_quantized_weights: bool = False
    zero_quantized_gradients: bool = False


class _TensorParallel(msgspec.Struct, kw_only=True):
    autotp_size: Annotated[int, Meta(ge=0, le=1 << 20)] = 0


class _ExpertParallel(msgspec.Struct, kw_only=True):
    enabled: bool = False
    autoep_size: Degree = 1


class _Pipeline(msgspec.Struct, kw_only=True):
    stages: Degree | Literal["auto"] = "auto"


class _Checkpointing(msgspec.Struct, kw_only=True):
    number_checkpoints: Annotated[int, Meta(ge=0)] | None = None


class _Half(msgspec.Struct, kw_only=True):
    enabled: bool | Literal["auto"] = False


class DeepSpeedFile(msgspec.Struct, kw_only=True):
    """The sections that say how training is spread; others are the job's own."""

    train_batch_size: Open = None
    train_micro_batch_size_per_gpu: Open = None
    gradient_accumulation_steps: Open = None
    sequence_parallel_size: Degree = 1
    zero_optimization: _Zero = msgspec.field(default_factory=_Zero)
    tensor_parallel: _TensorParallel = msgspec.field(default_factory=_TensorParallel)
    expert_parallel: _ExpertParallel = msgspec.field(default_factory=_ExpertParallel)
    pipeline: _Pipeline = msgspec.field(default_factory=_Pipeline)
    activation_checkpointing: _Checkpointing = msgspec.field(default_factory=_Checkpointing)
    bf16: _Half = msgspec.field(default_factory=_Half)
    fp16: _Half = msgspec.field(default_factory=_Half)


def read(file: DeepSpeedFile, devices: int) -> EngineLayout:
    """The layout of a file on `devices` devices; raises ValueError where they do not go together."""
    tensor = max(file.tensor_parallel.autotp_size, 1)
    stages = 1 if file.pipeline.stages == "auto" else file.pipeline.stages
    data, rest = divmod(devices, tensor * stages * file.sequence_parallel_size)
    if rest or data < 1:
        raise ValueError(
            f"{devices} devices are no multiple of tensor, pipeline and sequence ranks"
        )
    sharded = file.zero_optimization.stage > 0 and data > 1
    half = "bf16" if file.bf16.enabled is True else "fp16" if file.fp16.enabled is True else None
    micro, total = _number(file.train_micro_batch_size_per_gpu), _number(file.train_batch_size)
    steps = _number(file.gradient_accumulation_steps)
    if total is None and micro is not None:
        total = micro * (steps or 1) * data
    if micro is None and total is not None:
        micro = max(total // ((steps or 1) * data), 1)
    return EngineLayout(
        engine=NAME,
        pipeline=stages,
        replicas=1 if sharded else data,
        shards=data if sharded else 1,
        zero_stage=file.zero_optimization.stage if sharded else 0,
        experts=file.expert_parallel.autoep_size if file.expert_parallel.enabled else 1,
        ulysses=file.sequence_parallel_size,
        tensor=tensor,
        recompute="full" if file.activation_checkpointing.number_checkpoints else "none",
        global_batch=total,
        micro_batch=micro,
        precision=half,
        optimizer_on_host=file.zero_optimization.offload_optimizer.device == "cpu",
        unpriced=tuple(_unpriced(file.zero_optimization)),
    )


def _unpriced(zero: _Zero) -> Iterator[str]:
    if zero.offload_optimizer.device == "nvme":
        yield "zero_optimization.offload_optimizer: optimizer states on disks"
    if zero.offload_param.device != "none":
        yield "zero_optimization.offload_param: parameters on the host or on disks"
    if zero.zero_hpz_partition_size > 1:
        yield "zero_optimization.zero_hpz_partition_size: weights kept in parts within a node"
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if getattr(zero, name):
            yield f"zero_optimization.{name}: --compress says what travels in fewer bits"


def _number(value: int | str | None) -> int | None:
    return value if isinstance(value, int) else None


def settings(layout: EngineLayout) -> dict[str, Any]:
    """The sections of a file that says a layout."""
    sections: dict[str, Any] = {
        "train_batch_size": layout.global_batch,
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.micro_batches,
        "zero_optimization": {"stage": layout.zero_stage},
    }
    if layout.optimizer_on_host:
        sections["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if layout.tensor > 1:
        sections["tensor_parallel"] = {"autotp_size": layout.tensor}
    if layout.experts > 1:
        sections["expert_parallel"] = {"enabled": True, "autoep_size": layout.experts}
    if layout.ulysses > 1:
        sections["sequence_parallel_size"] = layout.ulysses
    if layout.pipeline > 1:
        sections["pipeline"] = {"stages": layout.pipeline, "partition": "uniform"}
    if layout.recompute == "full":
        sections["activation_checkpointing"] = {"number_checkpoints": 1}
    if layout.precision in ("bf16", "fp16"):
        sections[layout.precision] = {"enabled": True}
    return {k: v for k, v in sections.items() if v is not None}
