"""A program on as many ranks as there are: planned again where that is another number, and when ranks
leave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..ir.errors import FileError, MismatchError, UsageError
from ..ir.plan import plan as ir
from ..ir.plan.program import PLAN_FILE, GeneratedProgram, ProgramTable
from .plans.plan_object import Plan, load_plan
from .python import Optimizing, plan_for_all

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..ir.devices.cluster import Cluster
    from ..runtime.program import Program


def open_program(
    folder: str | Path,
    module: nn.Module,
    optimizer: Any = None,
    optimizer_args: Mapping[str, Any] | None = None,
    *,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    other_plans: Sequence[str | Path | ir.Plan] = (),
    **settings: Any,
) -> Program:
    """Open a compiled program on the ranks at hand; other arguments are those of `Program.open`.

    The program evaluates and takes batches of other shapes, for which `module` is traced again: with
    `loss_fn` where it was compiled with one. `other_plans` are as of `parallelize`.

    Where ranks are not as many as it was compiled for, rank 0 makes the plan again, for the same batch
    and precision, from the model file in the folder; checkpoints load under either. Raises FileError
    where that file is missing, InfeasibleError where nothing fits.
    """
    optimizing = Optimizing(optimizer, optimizer_args, settings.pop("param_groups", None))
    return FolderRequest(Path(folder), module, optimizing, loss_fn, other_plans, settings).opened()


class FolderRequest(NamedTuple):
    """What `open_program` is asked for."""

    folder: Path
    module: nn.Module
    optimizing: Optimizing
    loss_fn: Callable[[Any, Any], Tensor] | None
    other_plans: Sequence[str | Path | ir.Plan]
    settings: Mapping[str, Any]

    def opened(self, devices: Cluster | None = None) -> Program:
        """The program on the ranks at hand, which are `devices` where that is not this machine."""
        from ..runtime.launch.program_folder import read_table
        from ..runtime.launch.session import begin, on_first_rank
        from ..runtime.program import Program
        from ..runtime.state.module.user_module import unwrapped
        from ..runtime.state.optimizer import is_instance
        from .parallel.compiled_for_ranks import attach, program_folder, read_other_plans
        from .parallel.inductor_cache import use_inductor_cache

        _, world = begin()
        module, place = unwrapped(self.module), self.folder
        with ExitStack() as until_opened:
            if read_table(place).mesh.size != world:
                again = on_first_rank(lambda: planned_again(self.folder, world, devices))
                place = until_opened.enter_context(program_folder(again))
            use_inductor_cache(read_table(place).kernels)
            factory, arguments, groups = self.optimizing
            program = Program.open(
                place, module, factory, arguments, param_groups=groups, **self.settings
            )
            others = on_first_rank(lambda: read_other_plans(self.other_plans, world))
            plan = read_plan(place, program.table)
            attach(program, module, self.loss_fn, plan, others)
        if plan is not None and not is_instance(factory):
            program.reopen = lambda left: self.reopened(plan, left)
        return program

    def reopened(self, plan: Plan, left: Sequence[int]) -> Program:
        """The same on the devices that are left of a plan's."""
        from .parallel.rank_cluster import devices_left

        return self._replace(other_plans=()).opened(devices_left(plan, left))


def regroup(
    program: Program, *, checkpoint: str | Path | None = None, fall_back: bool = False
) -> Program:
    """Go on with the ranks that are left: when a step raises CommunicationError, each of them calls
    this and trains on with the program that it gets, from `program.batches` and `program.samples` on.

    The plan is made again for the devices that are left. Where these have every element of the
    parameters and of the optimizer's states, as after the last update that was whole on all of them,
    they move from memory to memory, else the newest `checkpoint` is loaded, with `fall_back` the newest
    sound one. `program.optimizer` is a new one: give it to a scheduler (`scheduler.optimizer = …`).

    Raises UsageError for a program of `Program.open`, a placement, and an optimizer that was built for
    the module, InfeasibleError where nothing fits the devices that are left, MismatchError where the
    state is nowhere, CommunicationError where the others have given this rank up.
    """
    from ..runtime.checkpoint.live import live_state, load_live
    from ..runtime.launch.regroup import regroup as ranks_left

    live, reopen, pool = live_state(program), _reopen_of(program), program.groups.pool
    _end(program)
    again = reopen(ranks_left(pool))
    if load_live(again, live):
        return again
    if checkpoint is None or not again.resume(checkpoint, fall_back=fall_back):
        raise MismatchError(
            "the ranks that are left have only a part of the parameters and states, and "
            + ("no checkpoint was named" if checkpoint is None else f"{checkpoint} holds none")
        )
    return again


def replan(program: Program) -> Program:
    """Train on with the module as it is now, on the same ranks: between steps its forward has changed
    (a gate that grows sparse, another window of attention), and each of them calls this and goes on with
    the program that it gets.

    The module is traced and planned anew, with the options of `parallelize`. Parameters, buffers and the
    optimizer's states move from memory to memory, and counts of steps and samples go on; for that moment
    a rank has its part of them twice. `program.optimizer` is a new one: give it to a scheduler.

    Raises UsageError as `regroup`, MismatchError in the middle of a step, with compressed messages, and
    where other parameters are trained, or read, than before, TraceError and InfeasibleError as
    `parallelize`; then the program trains on, once the module is as it was.
    """
    from ..runtime.checkpoint.live import live_state, load_live

    live = live_state(program)
    again = _reopen_of(program)(range(program.groups.everyone.size))
    if not load_live(again, live):
        raise MismatchError(
            "the ranks have not every parameter and state that the module needs now: it has others than "
            "it was traced with, the program is in the middle of a step, or its plan compresses"
        )
    pool = program.groups.pool
    _end(program)
    pool.close()
    return again


def _reopen_of(program: Program) -> Callable[[Sequence[int]], Program]:
    """What opens the program again on some of its ranks; raises UsageError where nothing can."""
    if program.reopen is None:
        raise UsageError(
            "ranks go on under another plan in programs of plait.parallelize and plait.open_program "
            "that have a plan, and an optimizer that can be made again: give its class, or a factory"
        )
    return program.reopen


def _end(program: Program) -> None:
    """Drop all that a program has: transfers of its last step would keep connections open."""
    steps = program.steps
    vars(program).clear()
    program.steps = steps  # of which its module's hooks ask


def read_plan(folder: Path, table: ProgramTable) -> Plan | None:
    """The plan in a program's folder; None for a placement or a program of an earlier version.

    Raises MismatchError for the plan of another program.
    """
    path = folder / PLAN_FILE
    if not path.is_file():
        return None
    plan = load_plan(path)
    if plan.digest != table.plan_digest:
        raise MismatchError(f"{path} is not the plan of the program beside it: compile it again")
    return plan


def planned_again(folder: Path, ranks: int, devices: Cluster | None = None) -> GeneratedProgram:
    """The program of a folder's model for another number of ranks: of these devices, else of this
    machine."""
    from ..ir.lowering.cast import HALF_PRECISIONS
    from ..planner.question.options import OPTIMIZERS
    from ..runtime.launch.program_folder import MODEL, read_table
    from .compilation import target_of_plan
    from .formats.model_source import read_model

    if not (folder / MODEL).is_file():
        raise FileError(
            f"{folder / MODEL}: missing, so the program cannot be planned for {ranks} ranks: compile it "
            f"again, or start as many ranks as it was compiled for"
        )
    table, model = read_table(folder), read_model(folder / MODEL)
    half = table.precision in HALF_PRECISIONS and not table.master_weights  # of the model itself
    options = {
        "global_batch": table.global_batch,
        "precision": None if half else table.precision,
        "gradient_precision": table.gradient_precision,
        "expert_slots": table.expert_slots,
        "optimizer_on": "host" if table.steps_on_host else "device",
        "optimizer": table.optimizer if table.optimizer in OPTIMIZERS else "adamw",
    }
    made = plan_for_all(model, devices or f"local:{ranks}", **options)
    return target_of_plan(made).program(model, table.source, table.kernels)
