"""The shape of a decoder, as rows and the configurations that they name describe it."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from .run import Row, UnmodelledError, flag, integer

TASKS = {"pretrain": 0, "sft": 0, "lora": 32}  # and the rank of adapters (default of NeMo's LoRA)
USUAL_WIDTH = 128  # of a head, in most decoders since GPT-3
# columns, and the keys of a transformers configuration that say them better
CONFIG_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "ffn": ("intermediate_size_mlp", "intermediate_size", "n_inner", "d_ff"),
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
    """What may differ from layer to layer: how tokens meet (attention to all or in a window, a state
    space, or not at all), and what follows: one feed-forward, experts or nothing."""

    mixer: Literal["attention", "window", "state", "none"] = "attention"
    feed: Literal["dense", "experts", "none"] = "dense"


# Of patterns, as Nemotron-H writes them; layers with two parts in capitals of their own
LETTERS = {
    "M": LayerKind("state", "none"),
    "*": LayerKind("attention", "none"),
    "-": LayerKind("none", "dense"),
    "E": LayerKind("none", "experts"),
    "S": LayerKind("state", "dense"),
    "A": LayerKind("attention", "dense"),
    "T": LayerKind("state", "experts"),
    "B": LayerKind("attention", "experts"),
}


class StateSpace(msgspec.Struct, frozen=True):
    """A state-space layer (Mamba-2, Dao and Gu 2024), or one of linear attention: `heads` of `width`
    units, each with a state of `size` rows, whose keys `groups` of heads share."""

    heads: int
    width: int
    size: int
    groups: int


class Architecture(msgspec.Struct, frozen=True):
    """The shape of a decoder. `gated`: Llama's layer (RMS norms, rotary positions, gated unit, no
    biases), else GPT's (layer norms, learned positions, GELU, biases). `head_size`: width of a head.
    `experts` of 0 is dense; `expert_hidden` is the width of each expert, `shared_hidden` that of what
    every token passes beside them. `fused_attention`: scores are never written. `adapter_rank`: only
    products of two thin matrices beside attention's are trained (LoRA). `tied`: the head is the
    embedding. The first `dense_layers` have no experts; all but every `window_period`-th layer attend to
    the last `window` tokens alone (0: to all). `group_share`: the part of the groups of experts that one
    token may choose from. `pattern`: of a hybrid, a letter of `LETTERS` for every layer; `state`: its
    state-space layers."""

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
    pattern: str = ""
    state: StateSpace | None = None

    def kinds(self, layers: int) -> list[LayerKind]:
        """The kinds of the model's layers, in their order."""
        if self.pattern:
            return [LETTERS[self.pattern[i % len(self.pattern)]] for i in range(layers)]
        narrow = 0 < self.window < self.tokens
        return [
            LayerKind(
                "window" if narrow and (i + 1) % self.window_period > 0 else "attention",
                "experts" if self.experts > 0 and i >= self.dense_layers else "dense",
            )
            for i in range(layers)
        ]


def read_architecture(row: Row) -> Architecture:
    """The architecture of a row; raises UnmodelledError naming the column."""
    config = read_config(row)
    said = config_columns(config)
    row = {
        **row,
        **said,
        "layers": row.get("layers") or said.get("layers", ""),
    }  # a run may have fewer
    hidden = integer(row, "hidden")
    heads = integer(row, "heads", usual_heads(hidden, integer(row, "tp", 1)))
    head_size = integer(row, "head_size", hidden // heads)
    if not row.get("head_size") and hidden % heads:
        raise UnmodelledError(f"hidden {hidden} is not a multiple of heads {heads}")
    experts = integer(row, "experts", 0)
    task = row.get("task", "") or "pretrain"
    if task not in TASKS:
        raise UnmodelledError(f"task {task!r} is not known: {', '.join(TASKS)}")
    gated = flag(row, "gated_mlp", experts > 0 or is_gated(config))
    ffn = integer(row, "ffn", 4 * hidden)
    # Llama 4 says two widths, has a shared expert, and names the narrower width as others name a layer's
    narrow = config.get("intermediate_size") if "intermediate_size_mlp" in config else None
    expert_hidden = integer(row, "moe_ffn", narrow or ffn) if experts else 0
    shared = integer(row, "shared_experts", int(narrow is not None)) * expert_hidden
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
        pattern=read_pattern(config),
        state=read_state(config),
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
        config = msgspec.json.decode(Path(name).read_bytes(), type=dict[str, Any])
        return config | (config.get("text_config") or {})  # of a model that sees or hears as well
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnmodelledError(f"config {name}: {error}") from None


def config_columns(config: Mapping[str, Any]) -> dict[str, str]:
    """What a configuration says of the columns."""
    said = {
        column: next((config[key] for key in keys if config.get(key) is not None), None)
        for column, keys in CONFIG_KEYS.items()
    }
    return {c: str(int(v)) for c, v in said.items() if isinstance(v, int | float)}


def is_latent(row: Row) -> bool:
    """Whether so many heads can only be those of latent attention, of which the row says no more."""
    hidden, heads = integer(row, "hidden"), integer(row, "heads", 1)
    return (
        bool(row.get("experts")) and not row.get("head_size") and hidden // heads < NARROW <= heads
    )


def is_gated(config: Mapping[str, Any]) -> bool:
    """Whether a configuration describes gated units: all do whose activation is no plain one."""
    plain = ("gelu", "gelu_new", "gelu_fast", "relu", "relu2")
    return bool(config) and "n_embd" not in config and config.get("hidden_act") not in plain


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


def read_pattern(config: Mapping[str, Any]) -> str:
    """The kinds of a hybrid's layers, in letters of `LETTERS`; empty: all of one kind."""
    layers = int(config.get("num_hidden_layers") or 0)
    pattern = config.get("hybrid_override_pattern") or ""
    if pattern or read_state(config) is None:
        return "".join(letter for letter in pattern if letter in LETTERS)
    period = int(config.get("full_attention_interval") or config.get("attn_layer_period") or NEVER)
    kinds = config.get("layer_types") or [
        "full_attention" if (i + 1) % period == 0 else "linear_attention" for i in range(layers)
    ]
    feeds = "TB" if config.get("num_experts") else "SA" if config.get("intermediate_size") else "M*"
    return "".join(feeds[kind in ("full_attention", "attention")] for kind in kinds)


def read_state(config: Mapping[str, Any]) -> StateSpace | None:
    """State-space layers by the keys of Nemotron-H, Bamba, Qwen3-Next and Mamba."""

    def first(*keys: str, default: int = 0) -> int:
        return next((int(config[key]) for key in keys if config.get(key)), default)

    size = first("ssm_state_size", "mamba_d_state", "linear_key_head_dim", "state_size")
    if not size:
        return None
    width = first("mamba_head_dim", "mamba_d_head", "linear_value_head_dim", default=64)
    inner = 2 * first("hidden_size", default=width)
    heads = first(
        "mamba_num_heads", "mamba_n_heads", "linear_num_value_heads", default=inner // width
    )
    groups = first("linear_num_key_heads", "n_groups", "mamba_n_groups", default=1)
    return StateSpace(heads, width, size, groups)
