"""Trace a PyTorch model into the IR: the only part of plait.ir that imports torch."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from ..errors import TraceError
from ..model import Model
from .assemble import assemble
from .execute import execute, run_ops
from .export import LossFunction, Recording, record
from .export import batch_size as _batch_size
from .graph import Graph
from .operators.elementary import call_key
from .passes import decompose as _finer  # noqa: F401  (registers its rules)
from .passes.functionalize import Unsupported, read
from .passes.rewrite import rewrite
from .resolve import resolve
from .source import Source, load_source, materialize

__all__ = [
    "Source",
    "call_key",
    "execute",
    "load_source",
    "materialize",
    "resolve",
    "run_ops",
    "trace",
]


def trace(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction | None = None,
    *,
    name: str | None = None,
    batch_size: int | None = None,
) -> Model:
    """Trace one training step of `model` on `batch`, without computing or allocating anything.

    `batch` is a dict (keyword arguments), a tuple or list (positional) or one tensor; only shapes
    and element types count. The loss is `loss_fn(output, batch)`, else `output.loss`, else the
    output itself. The model is traced as configured (`train()` or `eval()`) and left untouched.
    `batch_size` traces with that many samples in dimension 0 of every tensor that carries the batch.
    Without it a batch of one sample is traced as two: a size of 1 hides where the batch lies.

    Raises TraceError naming the file and line where the model does what cannot be traced.
    """
    with _on_cpu():
        size = _batch_size(batch)
        traced = max(size, 2) if batch_size is None else batch_size
        return _trace(model, batch, loss_fn, name or type(model).__name__, size, traced)


def _on_cpu() -> contextlib.AbstractContextManager[Any]:
    """New tensors are made on the CPU; saying so where they are anyway would slow every call."""
    default = torch.get_default_device().type == "cpu"
    return contextlib.nullcontext() if default else torch.device("cpu")


def _trace(
    model: nn.Module, batch: Any, loss_fn: LossFunction | None, name: str, size: int, traced: int
) -> Model:
    try:
        recording = record(model, batch, loss_fn, traced)
    except TraceError:
        if traced == size:
            raise
        traced = size
        recording = record(model, batch, loss_fn, traced)
    graph = _read(recording, model, batch, loss_fn, traced)
    return assemble(name, rewrite(graph), recording, traced)


def _read(
    recording: Recording, model: nn.Module, batch: Any, loss_fn: LossFunction | None, traced: int
) -> Graph:
    try:
        return read(recording)
    except Unsupported as error:
        # source lines cost time, so only a second recording keeps them
        lined = record(model, batch, loss_fn, traced, lines=True)
        nodes = list(lined.graph.graph.nodes)[error.index :]
        # a change of mode has no line of its own; what runs under it has
        lines = ((node.meta.get("custom") or {}).get("line") for node in nodes)
        raise TraceError(f"{next(filter(None, lines), 'the model')}: {error}") from error
