"""Scale down a transformers configuration by the names of its fields, for verification.

Preserved: which fields there are, query heads per key head, ratios of widths, an odd vocabulary,
the types of layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from ...errors import UsageError
from .configuration import FOREIGN
from .source import read_configuration

HEADS, HEAD, WIDTH, VOCABULARY, TOKENS, EXPERTS, CHOSEN = 4, 16, 16, 256, 64, 4, 2
MOST_SHARING = 8  # query heads per key head that are preserved; more become HEADS
Config = dict[str, Any]

FIELDS = {
    kind: re.compile(pattern)
    for kind, pattern in {
        "layers": r"(^|_)layers?$",
        "key heads": r"(^|_)(kv|key_value)_heads?$|^n_head_kv$",
        "heads": r"(^|_)heads?$",
        "head width": r"head_dim$|^d_kv$|^rotary_dim$|^query_pre_attn_scalar$",
        "width": r"(^|_)(hidden|intermediate|embedding|ffn|output|proj)_size$|(^|_)(dim|rank)$"
        r"|^d_(model|ff|inner)$|^n_(embd|inner)$",
        "vocabulary": r"^vocab_size$",
        "positions": r"(^|_)positions?(_embeddings)?$|^n_ctx$",
        "window": r"(^|_)window(_size)?$",
        "experts": r"(^|_)experts$",
        "chosen": r"_experts_per_tok$|^n_group$",
        "groups chosen": r"^topk_group$",
        "token": r"_token_id$",
        "image": r"^image_size$",
    }.items()
}


def shrink_source(
    source: str, layers: int, degree: int, seq: int | None
) -> tuple[Config, int | None]:
    """Scale down the configuration of `source` (`hf:config.json`).

    At most `layers` layers; heads and experts divisible by `degree`. Also returns the tokens per
    sample.
    Raises UsageError, FileError.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError("hf: sources need transformers: pip install 'plait[hf]'") from error
    configuration = read_configuration(Path(source.partition(":")[2]))
    rest = {k: v for k, v in configuration.items() if k not in ("model_type", *FOREIGN)}
    full = transformers.AutoConfig.for_model(configuration["model_type"], **rest)
    values = json.loads(full.to_json_string(use_diff=False))
    values = {k: v for k, v in values.items() if k not in FOREIGN}
    tokens = None if seq is None else min(seq, TOKENS + seq % 2)
    return shrink_config(values, full.attribute_map, layers, degree, (seq, tokens)), tokens


def shrink_config(
    values: Config,
    names: dict[str, str],
    layers: int,
    degree: int,
    seq: tuple[int | None, int | None],
) -> Config:
    """Scale down the fields of one configuration and of nested ones."""
    sizes = _sizes(values, names, layers, degree, seq)
    scaled = {key: _field(values, key, sizes) for key in values}
    for key, inner in values.items():
        if isinstance(inner, dict) and "model_type" in inner:
            scaled[key] = shrink_config(inner, {}, layers, degree, seq)
    depths = {v for k, v in values.items() if _is_number(v) and kind(k) == "layers"}
    for key, value in values.items():
        if (
            isinstance(value, list)
            and len(value) in depths
            and all(isinstance(x, str) for x in value)
        ):
            scaled[key] = value[:layers]
    return scaled


def kind(name: str) -> str | None:
    """The kind of a field (a key of FIELDS), by its name."""
    return next((kind for kind, pattern in FIELDS.items() if pattern.search(name)), None)


def changes(before: Config, after: Config) -> Iterator[tuple[str, Any, Any]]:
    """Yield fields whose numbers differ, as (name, before, after)."""
    for key, value in after.items():
        old = before.get(key, value)
        if _is_number(old) and old != value:
            yield key, old, value


def _sizes(
    values: Config,
    names: dict[str, str],
    layers: int,
    degree: int,
    seq: tuple[int | None, int | None],
) -> dict[str, Any]:
    """Scaled size of every kind of field: a maximum, or a (numerator, denominator) ratio."""

    def known(name: str, default: int) -> int:
        value = values.get(names.get(name, name))
        return value if _is_number(value) and value > 0 else default

    hidden, heads = known("hidden_size", WIDTH), known("num_attention_heads", 1)
    head = known("head_dim", max(hidden // heads, 1))
    shared = next((v for k, v in values.items() if kind(k) == "key heads" and _is_number(v)), heads)
    sharing = heads // max(shared, 1)
    groups = sharing if sharing <= MOST_SHARING else HEADS
    keys = min(max(degree, 2, HEADS // max(groups, 1)), max(shared, 1))
    fewer = keys * groups
    narrow = min(head, HEAD)
    before, tokens = seq
    vocabulary = VOCABULARY + known("vocab_size", 0) % 2
    return {
        "layers": layers,
        "key heads": keys,
        "heads": fewer,
        "head width": (narrow, head),
        "width": (min(fewer * narrow, hidden) if heads > 1 else min(64, hidden), hidden),
        "vocabulary": vocabulary,
        "token": vocabulary - 1,
        "positions": 2 * (tokens or TOKENS),
        "experts": max(EXPERTS, degree),
        "chosen": CHOSEN,
        "groups chosen": 1,
        "image": 4 * known("patch_size", 16),
        "window": (before or 0, (tokens or TOKENS) // 2),
    }


def _field(values: Config, key: str, sizes: dict[str, Any]) -> Any:
    """One field, scaled down where its kind is known."""
    value, what = values[key], kind(key)
    if what == "token" and isinstance(value, list):
        return [min(v, sizes[what]) if _is_number(v) else v for v in value]
    if what is None or not _is_number(value):
        return value
    size = sizes[what]
    if what == "window":  # one that reaches over a whole sample still does
        return min(value, size[1]) if value < size[0] else value
    if what == "head width":
        return max(value * size[0] // size[1], 1)
    if what == "width":
        least = min(value, WIDTH)
        return max(round(value * size[0] / size[1] / least) * least, least)
    return min(value, size)


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
