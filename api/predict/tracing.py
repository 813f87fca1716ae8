"""A decoder of a given shape, traced without allocating it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...ir.capture import trace as capture
from ...ir.model.model import Model
from .architecture import Architecture, LayerKind
from .transformer import Decoder


def trace(architecture: Architecture, kinds: Sequence[LayerKind], batch: int, dtype: str) -> Model:
    """One training step of the decoder on `batch` samples, in a torch type by name."""
    with torch.device("meta"):
        model = Decoder(architecture, kinds).to(getattr(torch, dtype))
        ids = torch.empty(batch, architecture.tokens, dtype=torch.int64)
    return capture(model, {"ids": ids, "labels": ids}, batch_size=batch)
