"""Megatron-LM's and Megatron Bridge's arguments: flags, or the same names in a YAML file.

    --tensor-model-parallel-size 8 --pipeline-model-parallel-layout Et*3|t*4|t*4L

A layout string has a letter per module: E embedding, t layer, m further prediction, L loss; `|` ends a
model chunk, `t*3` and `(t|)*3` repeat, commas mean nothing.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .engine_layout import EngineLayout, Recompute

NAME = "megatron"
MOST_LETTERS = 1 << 16  # of a layout string
Degree = Annotated[int, Meta(ge=1, le=1 << 20)]
SHARDINGS = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}
REPEATED = re.compile(r"\(([^()]*)\)\*(\d{1,4})|([Etml|])\*(\d{1,4})")


class MegatronFile(msgspec.Struct, kw_only=True):
    """The arguments that say how training is spread; others are the job's own."""

    tensor_model_parallel_size: Degree = 1
    pipeline_model_parallel_size: Degree = 1
    context_parallel_size: Degree = 1
    expert_model_parallel_size: Degree = 1
    expert_tensor_parallel_size: Degree | None = None
    num_layers: Degree | None = None
    num_layers_per_virtual_pipeline_stage: Degree | None = None
    num_virtual_stages_per_pipeline_rank: Degree | None = None
    virtual_pipeline_model_parallel_size: Degree | None = None
    pipeline_model_parallel_layout: str | None = None
    decoder_first_pipeline_num_layers: Degree | None = None
    decoder_last_pipeline_num_layers: Degree | None = None
    account_for_embedding_in_pipeline_split: bool = False
    account_for_loss_in_pipeline_split: bool = False
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = False
    num_distributed_optimizer_instances: Degree = 1
    use_megatron_fsdp: bool = False
    data_parallel_sharding_strategy: Literal[
        "no_shard", "optim", "optim_grads", "optim_grads_params"
    ] = "no_shard"
    micro_batch_size: Degree = 1
    global_batch_size: Degree | None = None
    recompute_granularity: Literal["full", "selective"] | None = None
    recompute_method: Literal["uniform", "block"] | None = None
    recompute_num_layers: Degree | None = None
    recompute_activations: bool = False
    bf16: bool = False
    fp16: bool = False
    fp8: str | None = None
    fp8_format: str | None = None
    fp4_format: str | None = None
    optimizer_cpu_offload: bool = False
    cpu_offloading: bool = False
    tp_comm_overlap: bool = False
    overlap_moe_expert_parallel_comm: bool = False
    moe_expert_capacity_factor: float | None = None


UNPRICED = {
    "fp8": "products in 8 bits",
    "fp8_format": "products in 8 bits",
    "fp4_format": "products in 4 bits",
    "cpu_offloading": "activations on the host",
    "tp_comm_overlap": "collectives of tensor ranks beside products",
    "overlap_moe_expert_parallel_comm": "exchanges of experts beside another micro-batch",
    "moe_expert_capacity_factor": "tokens over the capacity are dropped",
}


def read(file: MegatronFile, devices: int) -> EngineLayout:
    """The layout of arguments on `devices` devices; raises ValueError where they do not go
    together."""
    model = (
        file.tensor_model_parallel_size
        * file.pipeline_model_parallel_size
        * file.context_parallel_size
    )
    data, rest = divmod(devices, model)
    if rest or data < 1:
        raise ValueError(
            f"{devices} devices are no multiple of tensor × pipeline × context {model}"
        )
    tensor, expert_tensor = file.tensor_model_parallel_size, file.expert_tensor_parallel_size
    if tensor % (expert_tensor or tensor):
        raise ValueError(
            f"expert_tensor_parallel_size: {expert_tensor} do not divide {tensor} tensor ranks"
        )
    stage = SHARDINGS[file.data_parallel_sharding_strategy] if file.use_megatron_fsdp else 0
    stage = stage or int(file.use_distributed_optimizer)
    instances = file.num_distributed_optimizer_instances if stage else 1
    if data % instances:
        raise ValueError(
            f"num_distributed_optimizer_instances: {instances} do not divide {data} data ranks"
        )
    sharded = stage > 0 and data > instances
    split = parse_layout(file.pipeline_model_parallel_layout or "") or _uneven_split(file)
    recompute: Recompute = "none"
    if file.recompute_granularity == "full":
        recompute = "full"  # selective recomputes scores that fused attention never stores
    return EngineLayout(
        engine=NAME,
        pipeline=file.pipeline_model_parallel_size,
        model_chunks=_chunks(file, split),
        split=split if file.pipeline_model_parallel_size > 1 else (),
        replicas=instances if sharded else data,
        shards=data // instances if sharded else 1,
        zero_stage=stage if sharded else 0,
        experts=file.expert_model_parallel_size,
        context=file.context_parallel_size,
        tensor=tensor,
        expert_tensor=None if expert_tensor == tensor else expert_tensor,
        sequence_parallel=file.sequence_parallel and file.tensor_model_parallel_size > 1,
        recompute=recompute,
        recompute_layers=(file.recompute_num_layers or 0)
        if recompute == "full" and file.recompute_method == "block"
        else 0,
        global_batch=file.global_batch_size or file.micro_batch_size * data,
        micro_batch=file.micro_batch_size,
        precision="bf16" if file.bf16 else "fp16" if file.fp16 else "fp32",
        optimizer_on_host=file.optimizer_cpu_offload,
        unpriced=tuple(f"{n}: {about}" for n, about in UNPRICED.items() if getattr(file, n)),
    )


def _uneven_split(file: MegatronFile) -> tuple[int, ...]:
    """Layers of every model chunk where the first or the last stage has others than the rest; the
    embedding and the loss may count as a layer each. Empty where layers are divided evenly."""
    first, last = file.decoder_first_pipeline_num_layers, file.decoder_last_pipeline_num_layers
    embedding = int(file.account_for_embedding_in_pipeline_split)
    loss = int(file.account_for_loss_in_pipeline_split)
    if file.pipeline_model_parallel_size == 1 or not (first or last or embedding or loss):
        return ()
    if file.num_layers is None:
        raise ValueError("num_layers: stages of unequal numbers of layers need it")
    virtual = _chunks(file, ())
    count = file.pipeline_model_parallel_size
    ends = {s: layers for s, layers in ((0, first), (count - 1, last)) if layers is not None}
    rest = file.num_layers + embedding + loss - sum(ends.values())
    others = (count - len(ends)) * virtual
    if others < 1 or rest < 0 or rest % others or any(n % virtual for n in ends.values()):
        raise ValueError(
            f"num_layers: {file.num_layers} are not divided so over {count} stages of {virtual} chunks"
        )
    split = [
        ends[stage] // virtual if stage in ends else rest // others
        for _ in range(virtual)
        for stage in range(count)
    ]
    split[0], split[-1] = split[0] - embedding, split[-1] - loss
    return tuple(split)


def _chunks(file: MegatronFile, split: tuple[int, ...]) -> int:
    stages = file.pipeline_model_parallel_size
    if split:
        return max(1, len(split) // stages)
    virtual = (
        file.num_virtual_stages_per_pipeline_rank or file.virtual_pipeline_model_parallel_size or 1
    )
    if file.num_layers_per_virtual_pipeline_stage and file.num_layers:
        virtual = file.num_layers // (stages * file.num_layers_per_virtual_pipeline_stage)
    return max(1, virtual) if stages > 1 else 1


def parse_layout(text: str) -> tuple[int, ...]:
    """Layers of every model chunk of a layout string; empty for none. Raises ValueError."""
    letters = text.replace(",", "").replace(" ", "")
    while (match := REPEATED.search(letters)) is not None:
        unit, count = (match[1], match[2]) if match[2] else (match[3], match[4])
        if len(letters) + len(unit) * int(count) > MOST_LETTERS:
            raise ValueError("pipeline_model_parallel_layout: too long")
        letters = letters[: match.start()] + unit * int(count) + letters[match.end() :]
    if re.fullmatch(r"[EtmL|]*", letters) is None:
        raise ValueError(
            f"pipeline_model_parallel_layout: {text!r:.60} is not made of E, t, m, L, |"
        )
    return tuple(chunk.count("t") for chunk in letters.split("|")) if letters else ()


def layout_text(split: tuple[int, ...]) -> str:
    """The layout string of model chunks with so many layers."""
    chunks = [f"t*{layers}" if layers > 1 else "t" * layers for layers in split]
    return "E" + "|".join(chunks) + "L"


def settings(layout: EngineLayout) -> dict[str, Any]:
    """The arguments that say a layout."""
    arguments: dict[str, Any] = {
        "tensor_model_parallel_size": layout.tensor,
        "sequence_parallel": layout.sequence_parallel,
        "pipeline_model_parallel_size": layout.pipeline,
        "context_parallel_size": layout.context,
        "expert_model_parallel_size": layout.experts,
        "expert_tensor_parallel_size": layout.expert_tensor,
        "micro_batch_size": layout.micro_batch,
        "global_batch_size": layout.global_batch,
        "bf16": layout.precision == "bf16",
        "fp16": layout.precision == "fp16",
    }
    if layout.pipeline > 1 and layout.split:
        arguments["pipeline_model_parallel_layout"] = layout_text(layout.split)
    elif layout.model_chunks > 1:
        arguments["num_virtual_stages_per_pipeline_rank"] = layout.model_chunks
    arguments["use_distributed_optimizer"] = layout.zero_stage == 1
    arguments["optimizer_cpu_offload"] = layout.optimizer_on_host
    if layout.zero_stage and layout.replicas > 1:
        arguments["num_distributed_optimizer_instances"] = layout.replicas
    if layout.zero_stage > 1:
        names = {stage: name for name, stage in SHARDINGS.items()}
        arguments |= {
            "use_megatron_fsdp": True,
            "data_parallel_sharding_strategy": names[layout.zero_stage],
        }
    if layout.recompute == "full":
        arguments |= {
            "recompute_granularity": "full",
            "recompute_method": "block" if layout.recompute_layers else "uniform",
            "recompute_num_layers": layout.recompute_layers or 1,
        }
    return {k: v for k, v in arguments.items() if v is not False and v is not None}
