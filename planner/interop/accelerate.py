"""accelerate's YAML configuration: FSDP2 and ParallelismConfig.

The batch stands in the training script (`per_device_train_batch_size`, `gradient_accumulation_steps`),
so a file leaves it open.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .engine_layout import EngineLayout

NAME = "accelerate"
Degree = Annotated[int, Meta(ge=1, le=1 << 20)]
PRECISIONS = {"bf16": "bf16", "fp16": "fp16", "fp8": "bf16"}  # all else is fp32
GATHER_AGAIN = {"1": True, "FULL_SHARD": True, "HYBRID_SHARD": True, "true": True, "True": True}


class _Fsdp(msgspec.Struct, kw_only=True):
    fsdp_version: int = 1
    fsdp_reshard_after_forward: bool | str = True
    fsdp_sharding_strategy: int | str | None = None
    fsdp_activation_checkpointing: bool = False
    fsdp_offload_params: bool = False


class _Parallelism(msgspec.Struct, kw_only=True):
    parallelism_config_dp_replicate_size: Degree = 1
    parallelism_config_dp_shard_size: Degree | None = None
    parallelism_config_tp_size: Degree = 1
    parallelism_config_cp_size: Degree = 1
    parallelism_config_sp_size: Degree = 1


class AccelerateFile(msgspec.Struct, kw_only=True):
    """What says how training is spread; the rest is the machine's."""

    distributed_type: Literal["NO", "MULTI_GPU", "MULTI_CPU", "FSDP"]
    num_processes: Degree | None = None
    mixed_precision: Literal["no", "fp16", "bf16", "fp8"] | None = None
    fsdp_config: _Fsdp = msgspec.field(default_factory=_Fsdp)
    parallelism_config: _Parallelism = msgspec.field(default_factory=_Parallelism)


def read(file: AccelerateFile, devices: int) -> EngineLayout:
    """The layout of a file on `devices` devices; raises ValueError where they do not go together."""
    p, fsdp = file.parallelism_config, file.fsdp_config
    if file.num_processes is not None and file.num_processes != devices:
        raise ValueError(f"num_processes: {file.num_processes} where there are {devices} devices")
    inner = (
        p.parallelism_config_tp_size * p.parallelism_config_cp_size * p.parallelism_config_sp_size
    )
    replicas, sharding = p.parallelism_config_dp_replicate_size, file.distributed_type == "FSDP"
    shards = p.parallelism_config_dp_shard_size or (
        devices // (replicas * inner) if sharding else 1
    )
    if not sharding:
        replicas, shards = devices // inner, 1
    if replicas * shards * inner != devices:
        raise ValueError(f"parallelism_config: its sizes are not those of {devices} devices")
    return EngineLayout(
        engine=NAME,
        replicas=replicas,
        shards=shards,
        zero_stage=(3 if _gathers_again(fsdp) else 2) if shards > 1 else 0,
        context=p.parallelism_config_cp_size,
        ulysses=p.parallelism_config_sp_size,
        tensor=p.parallelism_config_tp_size,
        recompute="full" if fsdp.fsdp_activation_checkpointing else "none",
        precision=PRECISIONS.get(file.mixed_precision or "", "fp32"),
        unpriced=tuple(_unpriced(file)),
    )


def _unpriced(file: AccelerateFile) -> Iterator[str]:
    if file.fsdp_config.fsdp_offload_params:
        yield "fsdp_config.fsdp_offload_params: parameters and optimizer states on the host"
    if file.mixed_precision == "fp8":
        yield "mixed_precision: products in 8 bits, priced in 16"


def _gathers_again(fsdp: _Fsdp) -> bool:
    """Whether parameters are sharded again after forward."""
    chosen = fsdp.fsdp_reshard_after_forward
    if fsdp.fsdp_version == 1 and fsdp.fsdp_sharding_strategy is not None:
        chosen = str(fsdp.fsdp_sharding_strategy)
    return chosen if isinstance(chosen, bool) else GATHER_AGAIN.get(chosen, False)


def settings(layout: EngineLayout) -> dict[str, Any]:
    """The table of a file that says a layout, beside those of the machine."""
    sharding = layout.shards > 1
    table: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP" if sharding else "MULTI_GPU",
        "mixed_precision": layout.precision if layout.precision in ("bf16", "fp16") else "no",
        "num_processes": layout.devices,
    }
    if sharding:
        table["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": layout.zero_stage == 3,
            "fsdp_activation_checkpointing": layout.recompute == "full",
        }
        table["parallelism_config"] = {
            "parallelism_config_dp_replicate_size": layout.replicas,
            "parallelism_config_dp_shard_size": layout.shards,
            "parallelism_config_tp_size": layout.tensor,
            "parallelism_config_cp_size": layout.context,
        }
    return table
