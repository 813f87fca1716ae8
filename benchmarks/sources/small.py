"""Small models of transformers by their type: what sources of `coverage.py` share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SAMPLES, TOKENS, VOCABULARY, IMAGE = 4, 16, 96, 32

# fields of configurations and what they become; only fields that a configuration has change
SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "moe_intermediate_size", "dim_feedforward"), 64),
    **dict.fromkeys(("shared_expert_intermediate_size", "d_inner"), 64),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "encoder_layers"), 2),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads",), 4),
    **dict.fromkeys(("num_key_value_heads", "n_head_kv"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "kv_channels"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1),
    "vocab_size": VOCABULARY,
    "sliding_window": 8,
    "image_size": IMAGE,
}

Factory = Callable[[], tuple[nn.Module, dict[str, Tensor]]]


def shrink(config: Any, changes: dict[str, Any]) -> Any:
    """Make a configuration and its parts small, then as `changes` say."""
    for name, size in SIZES.items():
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > size:
            with suppress(AttributeError):  # derived from others
                setattr(config, name, size)
    if getattr(config, "kv_lora_rank", None):  # latent attention: a key head per query head
        config.num_key_value_heads = config.num_attention_heads
    types = getattr(config, "layer_types", None)
    if types:
        with suppress(AttributeError):
            config.layer_types = _both_kinds(types)
    for part in vars(config).values():
        if isinstance(part, transformers.PretrainedConfig):
            shrink(part, {})
    for name, value in changes.items():
        place = config
        *parents, last = name.split("__")
        for parent in parents:
            place = getattr(place, parent)
        setattr(place, last, value)
    return config


def _both_kinds(types: list[str]) -> list[str]:
    """Two layers, of two kinds if there are two."""
    return [types[0], next((t for t in types if t != types[0]), types[0])]


def config(model_type: str, **changes: Any) -> Any:
    return shrink(transformers.AutoConfig.for_model(model_type), changes)


def tokens(width: int = TOKENS) -> Tensor:
    return torch.randint(2, VOCABULARY, (SAMPLES, width))


def language(model_type: str, **changes: Any) -> Factory:
    """A causal language model and its tokens."""

    def make() -> tuple[nn.Module, dict[str, Tensor]]:
        model = transformers.AutoModelForCausalLM.from_config(config(model_type, **changes))
        ids = tokens()
        return model.train(), {"input_ids": ids, "labels": ids.clone()}

    return make


def languages(*model_types: str) -> dict[str, Factory]:
    return {name: language(name) for name in model_types}


# one factory per kind of model: an Auto class and the batch that it takes


def _factory(auto: str, batch: Callable[[Any], dict[str, Tensor]]) -> Callable[..., Factory]:
    def named(model_type: str, **changes: Any) -> Factory:
        def make() -> tuple[nn.Module, dict[str, Tensor]]:
            made = config(model_type, **changes)
            return getattr(transformers, auto).from_config(made).train(), batch(made)

        return make

    return named


def model(name: str, of: str, batch: Callable[[Any], dict[str, Tensor]], **changes: Any) -> Factory:
    """A model by the name of its class, with the configuration of type `of`."""

    def make() -> tuple[nn.Module, dict[str, Tensor]]:
        made = config(of, **changes)
        return getattr(transformers, name)(made).train(), batch(made)

    return make


def text_and_labels(config: Any) -> dict[str, Tensor]:
    ids = tokens()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def pixels(config: Any) -> Tensor:
    return torch.randn(SAMPLES, 3, IMAGE, IMAGE)


def picture(config: Any) -> dict[str, Tensor]:
    return {"pixel_values": pixels(config), "labels": torch.randint(0, 2, (SAMPLES,))}


def wave(config: Any) -> dict[str, Tensor]:
    return {"input_values": torch.randn(SAMPLES, 800), "labels": torch.randint(2, 20, (SAMPLES, 4))}


masked = _factory("AutoModelForMaskedLM", text_and_labels)
translator = _factory("AutoModelForSeq2SeqLM", text_and_labels)
classifier = _factory("AutoModelForImageClassification", picture)
listener = _factory("AutoModelForCTC", wave)
