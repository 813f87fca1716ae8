"""The Python API: trace, plan, parallelize."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import MismatchError, UsageError
from ..ir.model.model import Model
from ..ir.plan import plan as ir
from ..ir.plan.placement import Placement
from .options import check_keywords, takes_options
from .plans.plan_object import Plan, with_methods
from .plans.plan_request import plan_request

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..ir.devices.cluster import Cluster
    from ..runtime import Program
    from ..runtime.program import NonFinite
    from ..runtime.state.optimizer import ParameterGroups
    from .compilation import CompileTarget

# Options of planning that `parallelize` has another use for, or takes from the batch.
OTHERWISE_GIVEN = ("global_batch", "optimizer", "seed")  # of `parallelize`


def trace(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    name: str | None = None,
    batch_size: int | None = None,
    precision: str | None = None,
) -> Model:
    """Trace one training step into a `Model`; nothing is allocated and `model` stays as it is.

    `batch` is a dict (keyword arguments), a tuple or list (positional) or one tensor, real, fake or
    meta; only shapes and types count. The loss is `loss_fn(output, batch)`, else `output.loss`, else
    the output itself. `batch_size` traces with that many samples in dimension 0 instead, `precision`
    as after `model.to(…)`: casts that the model's code writes stay.
    Raises TraceError with the file and line that cannot be traced.
    """
    from ..ir.capture import trace as trace_model

    return trace_model(model, batch, loss_fn, name=name, batch_size=batch_size, precision=precision)


@takes_options()
def plan(
    model: nn.Module | Model,
    batch: Any = None,
    *,
    cluster: str | Cluster,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    optimizer_args: Mapping[str, Any] | None = None,
    param_groups: ParameterGroups | None = None,
    **options: Any,
) -> Plan:
    """The fastest plan that fits, offline: no device is touched, nothing is allocated.

    `model` is a module, traced with `batch` and `loss_fn` (see `trace`), or a traced Model. `cluster`
    is a preset (`"8x8xh100"`), `"local:N"`, a TOML file or a Cluster. The
    `optimizer` may also be what `parallelize` takes, with `optimizer_args` and `param_groups`: how large
    its states are and whether it needs whole tensors is found by a trial on small ones.
    After the time limit, or on Ctrl-C, the best plan so far is returned (`plan.complete` is then false).
    Raises InfeasibleError when nothing fits, TraceError, UsageError.
    """
    from ..cost_model.hardware import load_cluster
    from ..planner import plan as search
    from .plans.optimizer_profile import optimizer_profile

    check_keywords("plan", options)
    if isinstance(cluster, str):
        cluster = load_cluster(cluster)
    options["optimizer"] = optimizer_profile(
        model, options.get("optimizer"), optimizer_args, param_groups
    )
    request = plan_request(model, cluster.devices, options, batch, loss_fn)
    return with_methods(search(request.model, cluster, request.options))


@takes_options(without=OTHERWISE_GIVEN)
def parallelize(
    model: nn.Module,
    batch: Any,
    *,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    optimizer: Any = None,
    optimizer_args: Mapping[str, Any] | None = None,
    param_groups: ParameterGroups | None = None,
    nonfinite: NonFinite = "keep",
    plan: str | Path | ir.Plan | Placement = "auto",
    seed: int = 0,
    timeout_seconds: float = 60.0,
    dump_folder: str | Path = "plait-dump",
    check_every: int = 10,
    **options: Any,
) -> Program:
    """Under torchrun: plan (or take a plan or placement), compile, and return the program of this rank.

    `batch` is the GLOBAL batch, as `program.step(batch)` takes it. `optimizer` is a torch optimizer
    class (default AdamW), a factory of the user's own, or an optimizer built for `model`, which then
    updates the program instead. `param_groups` gets a list of (name, parameter) and gives the groups for
    the class; names and shapes are those of `model`, also where ranks have shards. `nonfinite` says what
    becomes of a step whose gradients are NaN or infinite: "stop", "skip" or "keep".

    With `plan="auto"` the ranks at hand are the cluster, planned for with the options; every rank makes
    the same plan, since planning is deterministic. A placement (`place`) runs every operator where it
    says. `seed` is that of the program's random numbers.
    A missing or stopped rank ends all others within `timeout_seconds`, with an error that names it;
    they leave their last collectives in `dump_folder` for `plait inspect`. Every `check_every` steps
    (0: never) ranks compare batches and replicas.
    Raises MismatchError when the plan is for another model or number of ranks, UsageError for options
    beside a plan. An optimizer that no rank of a plan can run right is a MismatchError.
    """
    from ..ir.capture.python_state.steady import STEADY
    from ..runtime import Program
    from ..runtime.comm.watchdog import WatchOptions
    from ..runtime.execution.guard import Guard
    from ..runtime.launch.session import begin
    from .plans.optimizer_profile import optimizer_profile, run_time_optimizer

    check_keywords("parallelize", options, without=OTHERWISE_GIVEN)
    if options and plan != "auto":
        raise UsageError(f"{next(iter(options))} is an option of planning, and a plan is given")
    rank, world = begin()
    if plan == "auto":
        options["optimizer"] = optimizer_profile(model, optimizer, optimizer_args, param_groups)
    traced, target = _target(model, batch, loss_fn, plan, world, options)
    if target.ranks != world:
        raise MismatchError(f"the plan is for {target.ranks} ranks, torchrun started {world}")
    folder = _written_program(target, traced, rank)
    settings = {
        "param_groups": param_groups,
        "nonfinite": nonfinite,
        "seed": seed,
        "watch": WatchOptions(timeout_seconds, Path(dump_folder)),
        "check_every": check_every,
    }
    run_time = run_time_optimizer(optimizer)
    program = Program.open(folder, model, run_time, optimizer_args, **settings)
    program.guard = Guard(model, loss_fn, STEADY.get(model, frozenset()))
    return program


def _written_program(target: CompileTarget, traced: Model, rank: int) -> str:
    """The folder of a program, which rank 0 writes; all ranks together."""
    import torch.distributed as dist

    from ..codegen import write_program

    folder = [tempfile.mkdtemp(prefix="plait-program-")] if rank == 0 else [""]
    dist.broadcast_object_list(folder)
    if rank == 0:
        write_program(target.program(traced, ""), Path(folder[0]))
    dist.barrier()
    return folder[0]


def _target(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    chosen: str | Path | ir.Plan | Placement,
    world: int,
    options: Mapping[str, Any],
) -> tuple[Model, CompileTarget]:
    """The traced model and what it is compiled to."""
    from .compilation import read_target, target_of_placement, target_of_plan

    if chosen == "auto":
        traced = trace(model, batch, loss_fn, precision=options.get("precision"))
        return traced, target_of_plan(plan(traced, cluster=f"local:{world}", **options))
    if isinstance(chosen, Placement):
        target = target_of_placement(chosen)
    elif isinstance(chosen, ir.Plan):
        target = target_of_plan(chosen)
    else:
        target = read_target(Path(chosen))
    size, precision = target.batch, target.precision
    return trace(model, batch, loss_fn, batch_size=size, precision=precision), target
