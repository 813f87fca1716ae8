"""`trace`: the passes that record a training step and bring it into the IR's terms."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from msgspec.structs import replace
from torch import nn

from ..errors import TraceError, at_least_one
from ..model.model import Model
from ..passes import Observer, run
from .assemble import Assemble
from .decompositions import bags as _bags  # noqa: F401  (registers its rules)
from .decompositions import draws as _draws  # noqa: F401  (registers its rules)
from .decompositions import gamma as _gamma  # noqa: F401  (registers its rules)
from .decompositions import recurrent as _recurrent  # noqa: F401  (registers its rules)
from .decompositions.decompose import Decompose
from .differentiate import Differentiate
from .export import LossFunction, Recording
from .export import batch_size as _batch_size
from .outline import Outline
from .outputs import ForwardOutputs
from .passes import losses as _losses  # noqa: F401  (registers its rules)
from .passes.constants import UnsupportedNode
from .passes.functionalize import Functionalize
from .passes.rewrite import Rewrite
from .passes.simplify import Simplify
from .python_state.steady import Export

TRACE_PASSES = (
    Export,
    Functionalize,
    Decompose,
    Rewrite,
    Outline,
    Simplify,
    Differentiate,
    Assemble,
)


def trace(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction | None = None,
    *,
    name: str | None = None,
    batch_size: int | None = None,
    precision: str | None = None,
    observer: Observer | None = None,
) -> Model:
    """Trace one training step of `model` on `batch`, without computing or allocating anything.

    `batch` is a dict (keyword arguments), a tuple or list (positional) or one tensor; only shapes
    and element types matter. The loss is `loss_fn(output, batch)`, else `output.loss`, else the
    output itself. The model is traced as configured (`train()` or `eval()`) and left untouched.
    `batch_size`: samples in dimension 0 of every batched tensor while tracing. Without it a batch
    of one sample is traced as two, since a size of 1 does not tell which dimension is the batch.
    `precision` (fp64, fp32, bf16, fp16) traces as after `model.to(…)`; casts that the model's code
    writes stay, and so does all of a model whose own precision it is. `observer` is shown what every
    pass gives.

    Raises TraceError with the file and line of what cannot be traced.
    """
    at_least_one(batch_size, "samples in a global batch")
    with _on_cpu():
        size = _batch_size(batch)
        traced = max(size, 2) if batch_size is None else batch_size
        export = Export(batch, loss_fn, traced, precision=precision)
        return _trace(export, model, observer, name or type(model).__name__)


def trace_outputs(
    model: nn.Module, batch: Any, outputs: ForwardOutputs, *, precision: str | None = None
) -> Model:
    """Trace a forward of `model` for its outputs, which are noted in `outputs`; see `trace`."""
    with _on_cpu():
        size = _batch_size(batch)
        export = Export(batch, None, max(size, 2), precision=precision, outputs=outputs)
        return _trace(export, model, None, type(model).__name__)


def _on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Create tensors on the CPU; a no-op by default, as a device context slows every call."""
    default = torch.get_default_device().type == "cpu"
    return contextlib.nullcontext() if default else torch.device("cpu")


def _trace(export: Export, model: nn.Module, observer: Observer | None, name: str) -> Model:
    try:
        recording = run(export, model, observer)
    except TraceError:
        size = _batch_size(export.batch)
        if export.traced == size:
            raise
        export = replace(export, traced=size)
        recording = run(export, model, observer)
    try:
        graph = run(Functionalize(), recording, observer)
    except UnsupportedNode as error:
        raise _located(error, recording) from error
    graph = run(Rewrite(), run(Decompose(), graph, observer), observer)
    return run(Assemble(name, export.traced, recording, observer), graph, observer)


def _located(error: UnsupportedNode, recording: Recording) -> TraceError:
    """The error with the user's line."""
    nodes = list(recording.graph.graph.nodes)[error.index :]
    # a mode change has no line, the operators under it do
    lines = ((node.meta.get("custom") or {}).get("line") for node in nodes)
    return TraceError(f"{next(filter(None, lines), 'the model')}: {error}")
