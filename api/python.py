"""The Python API: trace, plan, parallelize."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..ir.errors import MismatchError, UsageError
from ..ir.model.model import Model
from ..ir.plan import plan as ir
from ..ir.plan.placement import Placement
from .options import check_keywords, takes_options
from .parallel.argument_checks import check_cluster, check_model, check_settings, check_training
from .plans.plan_object import Plan, with_methods
from .plans.plan_request import plan_request

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..ir.devices.cluster import Cluster
    from ..ir.plan.program import GeneratedProgram, Kernels
    from ..runtime import Program
    from ..runtime.program import NonFinite
    from ..runtime.state.module.weight_files import Weights
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
    as after `model.to(…)`: casts that the model's code writes stay. Without one, a model that casts to
    its own type is traced in bfloat16 as well, for a plan that asks for 16 bits.
    Raises TraceError with the file and line that cannot be traced.
    """
    from ..ir.capture import trace as trace_model
    from ..ir.lowering.cast import with_half

    check_model(model, batch)

    def traced_in(precision: str | None) -> Model:
        settings = {"name": name, "batch_size": batch_size, "precision": precision}
        return trace_model(model, batch, loss_fn, **settings)

    traced = traced_in(precision)
    return traced if precision is not None else with_half(traced, traced_in)


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
    from ..cost_model.hardware import load_any_cluster
    from ..planner import plan as search
    from .plans.optimizer_profile import optimizer_profile

    check_keywords("plan", options)
    if not isinstance(model, Model):
        check_model(model, batch)
    check_cluster(cluster)
    if isinstance(cluster, str):
        cluster = load_any_cluster(cluster)
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
    other_plans: Sequence[str | Path | ir.Plan] = (),
    cluster: str | Cluster = "auto",
    inputs: Literal["global", "local"] = "global",
    weights: Weights | None = None,
    compile: bool = False,
    seed: int = 0,
    timeout_seconds: float = 60.0,
    dump_folder: str | Path = "plait-dump",
    check_every: int = 10,
    **options: Any,
) -> Program:
    """Under torchrun: plan (or take a plan or placement), compile, and return the program of this rank.

    `batch` is the GLOBAL batch, as `program.step(batch)` takes it, or with `inputs="local"` this rank's
    own part, samples in dimension 0. `optimizer` is a torch optimizer class (default AdamW), a factory
    of the user's own, or one built for `model`, which then updates the program. `param_groups` gives the
    groups for the class from (name, parameter) pairs as `model` has them, also where ranks have shards.
    `nonfinite` says what becomes of a step with NaN or infinite gradients: "stop", "skip" or "keep".

    `weights` are values for the module's tensors: a state_dict, a safetensors file, one of torch.save,
    or a folder of them. Each rank reads its shards alone: none has the whole of a meta-device module.
    With `compile` functions run inductor's kernels, one graph between two collectives, compiled in the
    first step (`program.meter.last()` tells its seconds) and cached on disk.

    With `plan="auto"` the ranks at hand are the `cluster`, as the machine says it is, planned for with
    the options. Rank 0 plans, prints the plan on stderr, compiles, and sends the program to the others.
    A placement (`place`) runs every operator where it says. Batches of the shapes of `other_plans`
    (`plait plan --buckets`) train under those: weights move there, gradients back.
    A missing or stopped rank ends all others within `timeout_seconds`, with an error that names it;
    they leave their last collectives in `dump_folder` for `plait inspect`. Every `check_every` steps
    (0: never) ranks compare batches and replicas.
    Raises MismatchError when a plan is for another model or number of ranks, or no rank of it can run
    the optimizer right, UsageError for options beside a plan, and for other plans that compress.
    """
    from ..runtime.comm.watchdog import WatchOptions
    from ..runtime.state.module.user_module import unwrapped

    check_keywords("parallelize", options, without=OTHERWISE_GIVEN)
    if options and plan != "auto":
        raise UsageError(f"{next(iter(options))} is an option of planning, and a plan is given")
    check_model(model, batch)
    check_training(model, optimizer_args, plan, cluster)
    check_settings(inputs, nonfinite, timeout_seconds, check_every)
    plans, kernels = ChosenPlans(plan, tuple(other_plans)), _kernels(compile)
    module, parts = unwrapped(model), inputs == "local"
    request = ProgramRequest(module, batch, loss_fn, plans, cluster, parts, kernels)
    watch = WatchOptions(timeout_seconds, Path(dump_folder))
    settings: dict[str, Any] = {"nonfinite": nonfinite, "seed": seed, "weights": weights}
    settings |= {"watch": watch, "check_every": check_every}
    return _opened(request, Optimizing(optimizer, optimizer_args, param_groups), options, settings)


def _kernels(compiled: bool) -> Kernels:
    return "inductor" if compiled else "aten"


class Optimizing(NamedTuple):
    """An optimizer as users give it, with its arguments and groups."""

    optimizer: Any
    arguments: Mapping[str, Any] | None
    param_groups: ParameterGroups | None


def _opened(
    request: ProgramRequest,
    optimizing: Optimizing,
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Program:
    """The program of this rank; all ranks together."""
    from ..runtime.execution.rank_parts import divided_paths
    from ..runtime.launch.session import begin, on_first_rank
    from ..runtime.program import Program
    from ..runtime.state.optimizer import is_instance
    from .parallel.compiled_for_ranks import attach, program_folder
    from .parallel.inductor_cache import use_inductor_cache
    from .parallel.rank_cluster import devices_left
    from .plans.optimizer_profile import run_time_optimizer

    _, world = begin()
    run_time, (module, _, loss_fn, *_) = run_time_optimizer(optimizing.optimizer), request
    compiled = on_first_rank(lambda: request.compiled(world, options, optimizing))
    use_inductor_cache(request.kernels)
    with program_folder(compiled.program) as folder:
        program = Program.open(
            folder,
            module,
            run_time,
            optimizing.arguments,
            param_groups=optimizing.param_groups,
            **settings,
        )
    attach(program, module, loss_fn, compiled.plan, compiled.others, compiled.steady)
    if request.parts:
        program.divided = divided_paths(request.batch)
    if (chosen := compiled.plan) is not None and not is_instance(run_time):

        def reopen(left: Sequence[int]) -> Program:
            pinned = options if len(left) == chosen.mesh.size else without_pins(options)
            again = pinned if request.plans.first == "auto" else precisions(chosen)
            return _opened(request.on(devices_left(chosen, left)), optimizing, again, settings)

        program.reopen = reopen
    return program


def plan_for_all(model: Model, cluster: str | Cluster, **options: Any) -> Plan:
    """The plan for all devices of a cluster, whose ranks have been started: of several kinds of which
    some alone would be faster, all as if they were the slowest."""
    from ..cost_model.hardware import load_any_cluster
    from ..ir.devices.mixed import as_slowest_devices

    devices = load_any_cluster(cluster) if isinstance(cluster, str) else cluster
    made = plan(model, cluster=devices, **options)
    if made.mesh.size == devices.devices:
        return made
    return plan(model, cluster=as_slowest_devices(devices), **options)


def without_pins(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options for other devices: pins are for a number of them."""
    return {name: option for name, option in options.items() if name != "pin"}


def precisions(plan: ir.Plan) -> dict[str, Any]:
    """The options that ask again for a plan's precisions, slots of experts and memory of optimizers."""
    from ..planner.question.training import training_of_plan

    names = ("precision", "gradient_precision", "expert_slots", "optimizer_on")
    training = training_of_plan(plan)
    return {name: training[name] for name in names}


class CompiledRequest(NamedTuple):
    """A compiled program, its plan (None for a placement), those of batches of other shapes, and the
    attributes of the module that its forward changes without changing what it computes."""

    program: GeneratedProgram
    plan: Plan | None
    others: tuple[ir.Plan, ...]
    steady: frozenset[str]


class ChosenPlans(NamedTuple):
    """The plan that a program trains under, and those of batches of other shapes."""

    first: str | Path | ir.Plan | Placement
    others: tuple[str | Path | ir.Plan, ...]


class ProgramRequest(NamedTuple):
    """What `parallelize` is asked for."""

    model: nn.Module
    batch: Any
    loss_fn: Callable[[Any, Any], Tensor] | None
    plans: ChosenPlans
    cluster: str | Cluster
    parts: bool  # the batch is one rank's
    kernels: Kernels

    def compiled(
        self, world: int, options: Mapping[str, Any], optimizing: Optimizing
    ) -> CompiledRequest:
        """The program for `world` ranks."""
        from ..ir.capture.python_state.module_facts import module_facts
        from ..ir.capture.python_state.steady import STEADY
        from ..ir.plan.program import for_module
        from .compilation import target_of_plan
        from .parallel.compiled_for_ranks import read_other_plans

        if self.plans.first == "auto":
            traced = self.traced(self.samples(world), options.get("precision"))
            target = target_of_plan(self.search(traced, world, options, optimizing))
        else:
            target = self.target()
            if target.ranks != world:
                raise MismatchError(
                    f"the plan is for {target.ranks} ranks, torchrun started {world}"
                )
            traced = self.traced(target.batch, target.precision)
        planned = None if target.plan is None else with_methods(target.plan)
        if planned is not None:
            print(planned, file=sys.stderr)
        program = for_module(target.program(traced, "", self.kernels), module_facts(self.model))
        others = read_other_plans(self.plans.others, world)
        steady = STEADY.get(self.model, frozenset())
        return CompiledRequest(program, planned, others, steady)

    def on(self, devices: Cluster) -> ProgramRequest:
        """The same on other devices, planned again."""
        return self._replace(plans=ChosenPlans("auto", ()), cluster=devices)

    def traced(self, samples: int | None, precision: str | None) -> Model:
        from ..ir.capture import trace as trace_model

        inputs = self.model, self.batch, self.loss_fn
        return trace_model(*inputs, batch_size=samples, precision=precision)

    def samples(self, world: int) -> int | None:
        """Samples of the global batch where this one is a rank's; None: those of the batch."""
        from ..ir.capture.batch import batch_size, leaves

        if not self.parts:
            return None
        return batch_size([tensor for _, tensor in leaves(self.batch)]) * world

    def search(
        self, traced: Model, world: int, options: Mapping[str, Any], optimizing: Optimizing
    ) -> Plan:
        from ..runtime.launch.session import default_device
        from .parallel.rank_cluster import cluster_of_ranks
        from .plans.optimizer_profile import optimizer_profile

        cluster = self.cluster
        if cluster == "auto":
            cluster = cluster_of_ranks(world, cuda=default_device().type == "cuda")
        profile = optimizer_profile(self.model, *optimizing)
        return plan_for_all(traced, cluster, **{**options, "optimizer": profile})

    def target(self) -> CompileTarget:
        """What a given plan or placement is compiled to."""
        from .compilation import read_target, target_of_placement, target_of_plan

        chosen = self.plans.first
        if isinstance(chosen, Placement):
            return target_of_placement(chosen)
        if isinstance(chosen, ir.Plan):
            return target_of_plan(chosen)
        return read_target(Path(chosen))
