"""Build a model and a batch from a transformers configuration, without the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TraceError, UsageError
from ..literals import DTYPES
from ..locate import user_location

MAXIMUM_BYTES = 1 << 20
IMAGE_SIZE = 224
# Keys by which transformers would load code or quantised weights from elsewhere.
FOREIGN = ("auto_map", "quantization_config", "_name_or_path", "trust_remote_code")


def build(values: dict[str, Any], batch: int | None, seq: int | None) -> tuple[nn.Module, Any]:
    """Build the model in training mode and a random batch with labels, on the current device.

    `batch`: samples; `seq`: tokens per sample. Raises UsageError, TraceError.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError("hf: sources need transformers: pip install 'plait[hf]'") from error
    kind = values["model_type"]
    rest = {k: v for k, v in values.items() if k not in ("model_type", *FOREIGN)}
    rest["use_cache"] = False  # no step of training reads it, and it makes layers unequal
    if kind not in transformers.CONFIG_MAPPING:
        raise UsageError(f"this transformers {transformers.__version__} has no model type {kind!r}")
    dtype = _dtype(values)
    try:
        config = transformers.AutoConfig.for_model(kind, **rest)
        _start_token(config)
        model_class = _model_class(transformers, config, values.get("architectures"))
        with default_dtype(dtype):
            model = model_class(config)
            samples = _batch(model, config, batch, seq)
    except (UsageError, TraceError):
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise TraceError(
            f"model type {kind!r}: {user_location(error.__traceback__)}: {message}"
        ) from error
    return model.train(), samples


def _model_class(transformers: Any, config: Any, architectures: Any) -> Any:
    if isinstance(architectures, list) and architectures:
        name = str(architectures[0])
        model_class = getattr(transformers, name, None) if name.isidentifier() else None
        base = transformers.PreTrainedModel
        if not (isinstance(model_class, type) and issubclass(model_class, base)):
            raise UsageError(f"transformers {transformers.__version__} has no model class {name!r}")
        return model_class
    families = ["MASKED_LM", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_CLASSIFICATION"]
    if getattr(config, "is_encoder_decoder", False):
        families.insert(0, families.pop(2))
    elif getattr(config, "is_decoder", False):
        families.insert(0, families.pop(1))
    for family in families:
        mapping = getattr(transformers, f"MODEL_FOR_{family}_MAPPING")
        if type(config) in mapping:
            classes = mapping[type(config)]
            return classes[0] if isinstance(classes, tuple) else classes
    raise UsageError(
        f"model type {config.model_type!r} has no class with a loss that is known here; "
        "name one in the configuration's `architectures`"
    )


def _start_token(config: Any) -> None:
    """Set a missing start token: encoder-decoders shift their labels in from it."""
    absent = getattr(config, "decoder_start_token_id", None) is None
    if getattr(config, "is_encoder_decoder", False) and absent:
        config.decoder_start_token_id = getattr(config, "pad_token_id", None) or 0


def _dtype(values: dict[str, Any]) -> torch.dtype:
    name = values.get("dtype") or values.get("torch_dtype") or "float32"
    if name not in DTYPES or not DTYPES[name].is_floating_point:
        raise UsageError(f"the configuration asks for the unknown dtype {name!r}")
    return DTYPES[name]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default floating-point type inside a `with` block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _batch(model: Any, config: Any, batch: int | None, seq: int | None) -> dict[str, Tensor]:
    batch = 1 if batch is None else batch
    if batch < 1:
        raise UsageError(f"--batch {batch}: an hf: source needs at least one sample")
    if getattr(model, "main_input_name", "input_ids") == "pixel_values":
        size = getattr(config, "image_size", None) or IMAGE_SIZE
        height, width = size if isinstance(size, list | tuple) else (size, size)
        pixels = torch.randn(batch, getattr(config, "num_channels", 3), height, width)
        return {"pixel_values": pixels, "labels": torch.randint(config.num_labels, (batch,))}
    if seq is None or seq < 1:
        raise UsageError("an hf: source of a language model needs --seq (tokens per sample)")
    vocabulary = config.get_text_config().vocab_size
    tokens, labels = (torch.randint(vocabulary, (batch, seq)) for _ in range(2))
    return {"input_ids": tokens, "labels": labels}
