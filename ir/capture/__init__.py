"""Trace a PyTorch model into the IR: the only package of plait.ir that imports torch."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import TraceError
from ..model import Model
from .assemble import assemble
from .execute import execute, run_ops
from .export import LossFunction, Recording
from .export import batch_size as _batch_size
from .graph import FlatGraph
from .operators.elementary import call_key
from .passes import decompose as _decompose  # noqa: F401  (registers its rules)
from .passes import losses as _losses  # noqa: F401  (registers its rules)
from .passes.constants import UnsupportedNode
from .passes.functionalize import read
from .passes.rewrite import rewrite
from .python_state.steady import record_steady
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
    precision: str | None = None,
) -> Model:
    """Trace one training step of `model` on `batch`, without computing or allocating anything.

    `batch` is a dict (keyword arguments), a tuple or list (positional) or one tensor; only shapes
    and element types matter. The loss is `loss_fn(output, batch)`, else `output.loss`, else the
    output itself. The model is traced as configured (`train()` or `eval()`) and left untouched.
    `batch_size`: samples in dimension 0 of every batched tensor while tracing. Without it a batch
    of one sample is traced as two, since a size of 1 does not tell which dimension is the batch.
    `precision` (fp64, fp32, bf16, fp16) traces as after `model.to(…)`; casts that the model's code
    writes stay, and so does all of a model whose own precision it is.

    Raises TraceError with the file and line of what cannot be traced.
    """
    with _on_cpu():
        size = _batch_size(batch)
        traced = max(size, 2) if batch_size is None else batch_size
        step = _Step(model, batch, loss_fn, precision)
        return _trace(step, name or type(model).__name__, size, traced)


def _on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Create tensors on the CPU; a no-op by default, as a device context slows every call."""
    default = torch.get_default_device().type == "cpu"
    return contextlib.nullcontext() if default else torch.device("cpu")


class _Step(NamedTuple):
    """The step to trace."""

    model: nn.Module
    batch: Any
    loss_fn: LossFunction | None
    precision: str | None

    def record(self, traced: int, lines: bool = False) -> Recording:
        return record_steady(*self[:3], traced, lines, self.precision)


def _trace(step: _Step, name: str, size: int, traced: int) -> Model:
    try:
        recording = step.record(traced)
    except TraceError:
        if traced == size:
            raise
        traced = size
        recording = step.record(traced)
    graph = _read(recording, step, traced)
    return assemble(name, rewrite(graph), recording, traced)


def _read(recording: Recording, step: _Step, traced: int) -> FlatGraph:
    try:
        return read(recording)
    except UnsupportedNode as error:
        # source lines cost time, so only a second recording keeps them
        with_lines = step.record(traced, lines=True)
        nodes = list(with_lines.graph.graph.nodes)[error.index :]
        # a mode change has no line, the operators under it do
        lines = ((node.meta.get("custom") or {}).get("line") for node in nodes)
        raise TraceError(f"{next(filter(None, lines), 'the model')}: {error}") from error
