"""The shape of a decoder, as rows and the configurations that they name describe it."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .run import Row, UnmodelledError, flag, integer

TASKS = {"pretrain": 0, "sft": 0, "lora": 32}  # and the rank of adapters (default of NeMo's LoRA)
USUAL_WIDTH = 128  # of a head, in most decoders since GPT-3
# columns, and the keys of a transformers configuration that say them better
CONFIG_KEYS = {
    "layers": ("num_hidden_layers",),
    "hidden": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "ffn": ("intermediate_size",),
    "vocab": ("vocab_size",),
    "experts": ("n_routed_experts", "num_experts", "num_local_experts"),
    "topk": ("num_experts_per_tok",),
    "moe_ffn": ("moe_intermediate_size",),
    "shared_experts": ("n_shared_experts",),
    "shared_ffn": ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"),
    "head_size": ("head_dim",),
    "tied": ("tie_word_embeddings",),
    "dense_layers": ("first_k_dense_replace",),
}
NEVER = 10**9  # of layers
WINDOW_PERIOD = (
    2  # every second layer sees all tokens (gpt-oss, Gemma 2) where nothing else is said
)


class Latent(msgspec.Struct, frozen=True):
    """Multi-head latent attention (DeepSeek-V2, 2024): queries and keys come from vectors of low rank
    (`query_rank` of 0: queries directly); a head has `plain` and `rotary` widths, and one of values."""

    query_rank: int
    key_rank: int
    plain: int
    rotary: int
    value: int


# DeepSeek-V2 and V3 and Kimi K2 alike
USUAL_LATENT = Latent(query_rank=1536, key_rank=512, plain=128, rotary=64, value=128)
NARROW = (
    64  # of a head: nothing that is large has narrower ones, but latent attention has wider ones
)


class LayerKind(NamedTuple):
    """What may differ from layer to layer: experts or one feed-forward, a window or all tokens."""

    mixture: bool
    windowed: bool


class Architecture(msgspec.Struct, frozen=True):
    """The shape of a decoder. `gated`: Llama's layer (RMS norms, rotary positions, gated unit, no
    biases), else GPT's (layer norms, learned positions, GELU, biases). `head_size`: width of a head.
    `experts` of 0 is dense; `expert_hidden` is the width of each expert, `shared_hidden` that of what
    every token passes beside them. `fused_attention`: scores are never written. `adapter_rank`: only
    products of two thin matrices beside attention's are trained (LoRA). `tied`: the head is the
    embedding. The first `dense_layers` have no experts; all but every `window_period`-th layer attend to
    the last `window` tokens alone (0: to all). `group_share`: the part of the groups of experts that one
    token may choose from."""

    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    tokens: int
    head_size: int
    gated: bool = True
    experts: int = 0
    choices: int = 0
    expert_hidden: int = 0
    shared_hidden: int = 0
    latent: Latent | None = None
    fused_attention: bool = True
    adapter_rank: int = 0
    tied: bool = False
    dense_layers: int = 0
    window: int = 0
    window_period: int = WINDOW_PERIOD
    group_share: float = 1.0

    def kinds(self, layers: int) -> list[LayerKind]:
        """The kinds of the model's layers, in their order."""
        narrow = 0 < self.window < self.tokens
        return [
            LayerKind(
                self.experts > 0 and i >= self.dense_layers,
                narrow and (i + 1) % self.window_period > 0,
            )
            for i in range(layers)
        ]


def read_architecture(row: Row) -> Architecture:
    """The architecture of a row; raises UnmodelledError naming the column."""
    config = read_config(row)
    row = {**row, **config_columns(config)}
    hidden = integer(row, "hidden")
    heads = integer(row, "heads", usual_heads(hidden, integer(row, "tp", 1)))
    head_size = integer(row, "head_size", hidden // heads)
    if not row.get("head_size") and hidden % heads:
        raise UnmodelledError(f"hidden {hidden} is not a multiple of heads {heads}")
    experts = integer(row, "experts", 0)
    task = row.get("task", "") or "pretrain"
    if task not in TASKS:
        raise UnmodelledError(f"task {task!r} is not known: {', '.join(TASKS)}")
    gated, ffn = flag(row, "gated_mlp", experts > 0), integer(row, "ffn", 4 * hidden)
    expert_hidden = integer(row, "moe_ffn", ffn) if experts else 0
    shared = integer(row, "shared_experts", 0) * expert_hidden
    return Architecture(
        hidden=hidden,
        heads=heads,
        kv_heads=integer(row, "kv_heads", heads),
        ffn=ffn,
        vocabulary=integer(row, "vocab", 50257),
        tokens=integer(row, "seq_len"),
        head_size=head_size,
        adapter_rank=TASKS[task],
        gated=gated,
        tied=flag(row, "tied", not gated),
        experts=experts,
        choices=integer(row, "topk", 1) if experts else 0,
        expert_hidden=expert_hidden,
        shared_hidden=integer(row, "shared_ffn", shared) if experts else 0,
        latent=read_latent(config) or (USUAL_LATENT if is_latent(row) else None),
        dense_layers=dense_layers(row, config) if experts else 0,
        window=read_window(config),
        window_period=window_period(config),
        group_share=(config.get("topk_group") or 1) / (config.get("n_group") or 1),
    )


def dense_layers(row: Row, config: Mapping[str, Any]) -> int:
    """First layers without experts. Fewer layers than the configuration names have the same share of
    them, and one at least."""
    usual = int(is_latent(row))  # in every such model
    dense, layers = integer(row, "dense_layers", usual), integer(row, "layers")
    return ceil(dense * min(1, layers / (config.get("num_hidden_layers") or layers)))


def read_window(config: Mapping[str, Any]) -> int:
    """Tokens that windowed layers attend to; 0: all layers attend to all."""
    used = config.get("use_sliding_window", True)
    return int(config.get("sliding_window") or 0) if used else 0


def window_period(config: Mapping[str, Any]) -> int:
    """Layers from one that attends to all tokens to the next."""
    kinds = config.get("layer_types") or ()
    if "full_attention" in kinds:
        return kinds.index("full_attention") + 1
    if kinds or config.get("model_type") == "mistral":  # no layer does
        return NEVER
    return int(config.get("sliding_window_pattern") or WINDOW_PERIOD)


def usual_heads(hidden: int, tensor: int) -> int:
    """Heads of a row that names none: their width divides `hidden` and lies nearest to the usual one,
    and tensor ranks share them. What a step takes hardly depends on it."""
    counts = [n for n in range(tensor, hidden + 1, tensor) if hidden % n == 0] or [1]
    return min(counts, key=lambda n: abs(log(hidden / n / USUAL_WIDTH)))


def read_config(row: Row) -> Mapping[str, Any]:
    """The transformers configuration that a row names; raises UnmodelledError if unreadable."""
    name = row.get("config", "")
    if not name:
        return {}
    try:
        return msgspec.json.decode(Path(name).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnmodelledError(f"config {name}: {error}") from None


def config_columns(config: Mapping[str, Any]) -> dict[str, str]:
    """What a configuration says of the columns. Layers stay those of the row, which may have fewer."""
    said = {
        column: next((config[key] for key in keys if config.get(key) is not None), None)
        for column, keys in CONFIG_KEYS.items()
        if column != "layers"
    }
    return {c: str(int(v)) for c, v in said.items() if isinstance(v, int | float)}


def is_latent(row: Row) -> bool:
    """Whether so many heads can only be those of latent attention, of which the row says no more."""
    hidden, heads = integer(row, "hidden"), integer(row, "heads", 1)
    return (
        bool(row.get("experts")) and not row.get("head_size") and hidden // heads < NARROW <= heads
    )


def read_latent(config: Mapping[str, Any]) -> Latent | None:
    if not config.get("kv_lora_rank"):
        return None
    return Latent(
        int(config.get("q_lora_rank") or 0),
        int(config["kv_lora_rank"]),
        int(config.get("qk_nope_head_dim") or 128),
        int(config.get("qk_rope_head_dim") or 64),
        int(config.get("v_head_dim") or 128),
    )
