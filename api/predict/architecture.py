"""The shape of a decoder, as rows describe it."""

from __future__ import annotations

import msgspec

from .run import Row, UnmodelledError, flag, integer

TASKS = {"pretrain": 0, "sft": 0, "lora": 32}  # and the rank of adapters (assumed)


class Architecture(msgspec.Struct, frozen=True):
    """The shape of a decoder. `gated`: Llama's layer (RMS norms, rotary positions, gated unit, no
    biases), else GPT's (layer norms, learned positions, GELU, biases). `experts` of 0 is dense;
    `expert_hidden` is the width of each expert. `fused_attention`: scores are never written.
    `adapter_rank`: only products of two thin matrices beside attention's are trained
    (LoRA). `tied`: the head is the embedding."""

    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    tokens: int
    gated: bool = True
    experts: int = 0
    choices: int = 0
    expert_hidden: int = 0
    fused_attention: bool = True
    adapter_rank: int = 0
    tied: bool = False


def read_architecture(row: Row) -> Architecture:
    """The architecture of a row; raises UnmodelledError naming the column."""
    hidden, heads = integer(row, "hidden"), integer(row, "heads")
    if hidden % heads:
        raise UnmodelledError(f"hidden {hidden} is not a multiple of heads {heads}")
    experts = integer(row, "experts", 0)
    task = row.get("task", "") or "pretrain"
    if task not in TASKS:
        raise UnmodelledError(f"task {task!r} is not known: {', '.join(TASKS)}")
    gated = flag(row, "gated_mlp", experts > 0)
    return Architecture(
        hidden=hidden,
        heads=heads,
        kv_heads=integer(row, "kv_heads", heads),
        ffn=integer(row, "ffn", 4 * hidden),
        vocabulary=integer(row, "vocab", 50257),
        tokens=integer(row, "seq_len"),
        adapter_rank=TASKS[task],
        gated=gated,
        tied=flag(row, "tied", not gated),
        experts=experts,
        choices=integer(row, "topk", 1) if experts else 0,
        expert_hidden=integer(row, "moe_ffn", integer(row, "ffn", 4 * hidden)) if experts else 0,
    )
