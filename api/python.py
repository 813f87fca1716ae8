"""The Python API: trace, plan, parallelize."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ..ir.errors import MismatchError
from ..ir.lowering.cast import in_precision
from ..ir.model import Model
from ..ir.placement import Placement
from ..ir.plan.plan import Plan as PlanData
from .plan_object import Plan, planned
from .units import memory_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..ir.devices.cluster import Cluster
    from ..planner import PlanOptions
    from ..runtime import Program


def trace(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    name: str | None = None,
    batch_size: int | None = None,
) -> Model:
    """Trace one training step into a `Model`; nothing is allocated and `model` stays as it is.

    `batch` is a dict (keyword arguments), a tuple or list (positional) or one tensor, real, fake or
    meta; only shapes and types count. The loss is `loss_fn(output, batch)`, else `output.loss`, else
    the output itself. `batch_size` traces with that many samples in dimension 0 instead.
    Raises TraceError with the file and line that cannot be traced.
    """
    from ..ir.capture import trace as traced

    return traced(model, batch, loss_fn, name=name, batch_size=batch_size)


def plan(
    model: nn.Module | Model,
    batch: Any = None,
    *,
    cluster: str | Cluster,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    global_batch: int | None = None,
    memory: int | str | None = None,
    precision: str | None = None,
    optimizer: str = "adamw",
    roles: str | tuple[str, ...] | None = None,
    pin: str | Sequence[str] = (),
    micro_batches: int | None = None,
    schedule: str = "auto",
    memory_actions: tuple[str, ...] = ("keep", "recompute", "offload", "split"),
    seed: int = 0,
    time_limit: float | None = None,
    compress: str = "none",
    quality: str = "safe",
) -> Plan:
    """The fastest plan that fits, offline: no device is touched, nothing is allocated.

    `cluster` is a preset (`"8x8xh100"`), `"local:N"`, a TOML file or a Cluster. `global_batch` is
    samples per step (default: the batch given). `memory` is a budget per device in bytes or as text
    (`"72GiB"`). `pin` forces a strategy word (`"dp=2,tp=2"`) on every layer, or several
    (`["*:dp=4", "block[0-3]:dp=2,tp=2"]`) on those whose names match, the last that does; or it names
    a strategy file of Galvatron's (`"galvatron_config.json"`), with its batch and micro-batches.
    `schedule` of the pipeline is `1f1b`, `interleaved` or the faster of both (`auto`).
    `precision` is one of fp64, fp32, bf16, fp16 (default: the model's own). After `time_limit` seconds
    of search, or on Ctrl-C, the best plan so far is taken (`plan.complete` is then false).
    `compress` is `none`, an algorithm (`"sdp4bit"`), or `auto`: what pays, within `quality` (lossless,
    safe, all).
    Raises InfeasibleError when nothing fits, TraceError, UsageError.
    """
    from ..cost_model.hardware import load_cluster
    from ..planner import plan as search

    chosen = load_cluster(cluster) if isinstance(cluster, str) else cluster
    traced, options = question(
        model,
        batch,
        chosen.devices,
        loss_fn,
        global_batch,
        precision,
        roles,
        pin,
        memory_bytes=memory_bytes(memory),
        optimizer=optimizer,
        micro_batches=micro_batches,
        schedule=schedule,
        memory_actions=memory_actions,
        seed=seed,
        compress=compress,
        time_limit_seconds=time_limit,
        quality=quality,
    )
    return planned(search(traced, chosen, options))


def question(
    model: nn.Module | Model,
    batch: Any,
    devices: int,
    loss_fn: Any,
    global_batch: int | None,
    precision: str | None,
    roles: str | tuple[str, ...] | None,
    pin: str | Sequence[str],
    **options: Any,
) -> tuple[Model, PlanOptions]:
    """What the planner is asked of so many devices: the model as it is run, and the options."""
    from ..planner import PlanOptions
    from ..planner.interop.galvatron_plan import bounds_of, pins_of
    from ..planner.pins import parse_pin
    from .galvatron_files import read_galvatron

    words = [pin] if isinstance(pin, str) else list(pin)
    named = [word for word in words if word.endswith(".json")]
    files = {word: read_galvatron(Path(word), devices) for word in named}
    for found in files.values():
        global_batch = global_batch or found.batch.samples
        options["micro_batches"] = options.get("micro_batches") or found.batch.micro_batches
        if options.get("schedule", "auto") == "auto":
            options["schedule"] = "1f1b"  # the file's own has one piece per stage
    traced = (
        model if isinstance(model, Model) else trace(model, batch, loss_fn, batch_size=global_batch)
    )
    if global_batch is not None and traced.batch != global_batch:
        from ..ir.lowering.rescale import rescale

        traced = rescale(traced, global_batch)
    pins = tuple(
        p for w in words for p in (pins_of(files[w], traced) if w in files else [parse_pin(w)])
    )
    bounds = next((bounds_of(found, traced) for found in files.values()), None)
    made = PlanOptions(precision=precision, pins=pins, bounds=bounds, **options)
    if roles is not None:
        made = replace(made, roles=tuple(roles.split(",") if isinstance(roles, str) else roles))
    return in_precision(traced, precision), made


def parallelize(
    model: nn.Module,
    batch: Any,
    *,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    optimizer: Any = None,
    optimizer_args: Mapping[str, Any] | None = None,
    plan: str | Path | PlanData | Placement = "auto",
    seed: int = 0,
) -> Program:
    """Under torchrun: plan (or take a plan or placement), compile, and return the program of this rank.

    `batch` is the GLOBAL batch, as `program.step(batch)` takes it. `optimizer` is a torch optimizer
    class (default AdamW). With `plan="auto"` the ranks at hand are the cluster. Every rank makes the
    same plan, since planning is deterministic. A placement (`place`) runs every operator where it says.
    Raises MismatchError when the plan is for another model or number of ranks.
    """
    import torch.distributed as dist

    from ..codegen import write
    from ..runtime import Program
    from ..runtime.launch.session import begin
    from .compilation import of_placement, of_plan, read_decision

    rank, world = begin()
    if plan == "auto":
        traced = trace(model, batch, loss_fn)
        decision = of_plan(_plan_here(traced, world))
    else:
        if isinstance(plan, Placement):
            decision = of_placement(plan)
        else:
            decision = of_plan(plan) if isinstance(plan, PlanData) else read_decision(Path(plan))
        traced = trace(model, batch, loss_fn, batch_size=decision.batch)
    if decision.ranks != world:
        raise MismatchError(f"the plan is for {decision.ranks} ranks, torchrun started {world}")
    folder = [tempfile.mkdtemp(prefix="plait-program-")] if rank == 0 else [""]
    dist.broadcast_object_list(folder)
    if rank == 0:
        write(decision.program(traced, ""), Path(folder[0]))
    dist.barrier()
    return Program.open(folder[0], model, optimizer, optimizer_args, seed=seed)


def _plan_here(traced: Model, world: int) -> Plan:
    return plan(traced, cluster=f"local:{world}")
