"""The shape of a decoder, as rows describe it."""

from __future__ import annotations

import msgspec

from .run import Row, Unmodelled, flag, whole


class Architecture(msgspec.Struct, frozen=True):
    """The shape of a decoder. `gated`: Llama's layer (RMS norms, rotary positions, gated unit, no
    biases), else GPT's (layer norms, learned positions, GELU, biases). `experts` of 0 is dense;
    `expert_hidden` is the width of each expert. `fused_attention`: scores are never written."""

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


def read_architecture(row: Row) -> Architecture:
    """The architecture of a row; raises Unmodelled naming the column."""
    hidden, heads = whole(row, "hidden"), whole(row, "heads")
    if hidden % heads:
        raise Unmodelled(f"hidden {hidden} is not a multiple of heads {heads}")
    experts = whole(row, "experts", 0)
    return Architecture(
        hidden=hidden,
        heads=heads,
        kv_heads=whole(row, "kv_heads", heads),
        ffn=whole(row, "ffn", 4 * hidden),
        vocabulary=whole(row, "vocab", 50257),
        tokens=whole(row, "seq_len"),
        gated=flag(row, "gated_mlp", experts > 0),
        experts=experts,
        choices=whole(row, "topk", 1) if experts else 0,
        expert_hidden=whole(row, "moe_ffn", whole(row, "ffn", 4 * hidden)) if experts else 0,
    )
