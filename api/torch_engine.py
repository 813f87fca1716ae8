"""Plans on PyTorch's own engine: `plait.apply`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import MismatchError
from ..ir.plan import plan as ir

if TYPE_CHECKING:
    from torch import Tensor, nn


def apply(
    model: nn.Module,
    plan: str | Path | ir.Plan,
    batch: Any = None,
    *,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    compile: bool = False,
) -> nn.Module:
    """Turn `model` in place into the plan's form on PyTorch's own engine, by its public APIs alone, and
    return it: fully_shard and replicas, tensor-parallel styles, pipelining stages, checkpoints and
    offload by layer.

    Under torchrun, on every rank of the plan. Module names, optimizer and loop stay yours: build the
    optimizer from `model.parameters()` afterwards; each data rank feeds its own samples, of equal
    number, whose mean losses the engine averages. `batch` (as `trace` takes it) is needed where the
    plan splits operators or has stages. Of pipeline stages a module is returned whose `step(**batch)`
    runs forward and backward of all micro-batches and returns their mean loss. Plans made with
    `--engine torch` can be applied; of others what cannot be said is refused by name. Raises
    UsageError, MismatchError for another number of ranks.
    """
    from ..ir.capture import trace
    from ..runtime.launch.session import begin, default_device
    from ..runtime.torch_engine.apply import TracedBatch, apply_plan
    from .plans.plan_object import load_plan

    chosen = plan if isinstance(plan, ir.Plan) else load_plan(plan)
    _, world = begin()
    if chosen.mesh.size != world:
        raise MismatchError(f"the plan is for {chosen.mesh.size} ranks, torchrun started {world}")
    sample = None if batch is None else TracedBatch(batch, trace(model, batch, loss_fn), loss_fn)
    if sample is not None and tuple(c.path for c in sample.model.calls) != chosen.calls:
        raise MismatchError(f"the plan is for another model: {chosen.model}")
    return apply_plan(model, chosen, sample, default_device().type, compile)
