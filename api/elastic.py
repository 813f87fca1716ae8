"""A program on as many ranks as there are: planned again where that is another number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import FileError, MismatchError
from ..ir.plan import plan as ir
from ..ir.plan.program import PLAN_FILE, GeneratedProgram, ProgramTable
from .plans.plan_object import Plan, load_plan

if TYPE_CHECKING:
    from torch import Tensor, nn

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
    from ..runtime.launch.program_folder import read_table
    from ..runtime.launch.session import begin, on_first_rank
    from ..runtime.program import Program
    from ..runtime.state.module.user_module import unwrapped
    from .parallel.compiled_for_ranks import attach, program_folder, read_other_plans
    from .parallel.inductor_cache import use_inductor_cache

    _, world = begin()
    module, place = unwrapped(module), Path(folder)
    with ExitStack() as until_opened:
        if read_table(place).mesh.size != world:
            again = on_first_rank(lambda: planned_again(Path(folder), world))
            place = until_opened.enter_context(program_folder(again))
        use_inductor_cache(read_table(place).kernels)
        program = Program.open(place, module, optimizer, optimizer_args, **settings)
        others = on_first_rank(lambda: read_other_plans(other_plans, world))
        attach(program, module, loss_fn, read_plan(place, program.table), others)
    return program


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


def planned_again(folder: Path, ranks: int) -> GeneratedProgram:
    """The program of a folder's model for another number of ranks of this machine."""
    from ..ir.lowering.cast import HALF_PRECISIONS
    from ..ir.plan.program import with_kernels
    from ..planner.question.options import OPTIMIZERS
    from ..runtime.launch.program_folder import MODEL, read_table
    from .compilation import target_of_plan
    from .formats.model_source import read_model
    from .python import plan

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
        "optimizer": table.optimizer if table.optimizer in OPTIMIZERS else "adamw",
    }
    made = plan(model, cluster=f"local:{ranks}", **options)
    return with_kernels(target_of_plan(made).program(model, table.source), table.kernels)
