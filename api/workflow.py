"""What the commands do with files, as Python: load, compare, compile, verify and simulate."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.model.model import Model
from ..ir.plan import plan as ir
from ..ir.plan.placement import Placement

if TYPE_CHECKING:
    from ..cost_model.what_if import SimulatedStep
    from ..ir.devices.cluster import Cluster
    from ..runtime.verification.verify import Verdict


def load_model(
    source: str,
    *,
    batch: int | None = None,
    seq: int | None = None,
    global_batch: int | None = None,
    precision: str | None = None,
) -> Model:
    """The model of a source, traced or read: `hf:config.json` (with `batch` and `seq`),
    `file.py:factory`, or a `model.json`.

    Raises FileError, UsageError, and TraceError with the line that cannot be traced.
    """
    from .formats.model_source import load_model as load

    return load(source, batch, seq, global_batch, precision)


def load_cluster(name: str) -> Cluster:
    """A cluster by name (`8x8xh100`, `16xp5`, `local:4`) or from a TOML file."""
    from ..cost_model.hardware import load_cluster as load

    return load(name)


def diff(plan: ir.Plan, other: ir.Plan) -> str:
    """Seconds and bytes that another plan of the model costs more, by term; layers that differ."""
    from .plans.comparison import comparison, layer_differences

    return "\n".join([comparison(plan, other), *layer_differences(plan, other)])


def compile(plan: str | Path | ir.Plan | Placement, model: Model, folder: str | Path) -> Path:
    """Write the training program of a plan or placement into `folder`, and return it.

    `model` is the traced model that was planned. Raises MismatchError where it is another one.
    """
    from ..codegen import write_program
    from ..runtime.launch.program_folder import MODEL
    from .compilation import read_target, target_of_placement, target_of_plan
    from .formats import files

    if isinstance(plan, Placement):
        target = target_of_placement(plan)
    elif isinstance(plan, ir.Plan):
        target = target_of_plan(plan)
    else:
        target = read_target(Path(plan))
    write_program(target.program(model, "", "aten"), Path(folder))
    files.write(Path(folder) / MODEL, model, "plait/model")
    return Path(folder)


def verify(
    plan: str | Path | ir.Plan, source: str, *, options: Iterable[str] = ()
) -> tuple[Verdict, ...]:
    """Run the program of a plan on gloo ranks beside the user's module, and say where they differ.

    `options` are those of `plait verify` (`("--scale", "tiny")`). The verdicts say `passed`, and name
    the first wrong tensor otherwise. Call it under `if __name__ == "__main__":`: it starts processes.
    """
    from ..runtime.launch.scratch import scratch_folder
    from ..runtime.verification.verify import verify as run
    from .commands import verify as command
    from .formats import files

    with scratch_folder("verify") as scratch:
        path = plan
        if isinstance(plan, ir.Plan):
            path = scratch / "verified_plan.json"
            files.write(path, plan, "plait/plan")
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        arguments = parser.parse_args([str(path), source, *options])
        case = command.case_of(arguments, scratch)
        jobs = command.jobs_of(arguments, case, scratch)
        return tuple(run(jobs, case.target.ranks, arguments.timeout))


def simulate(
    plan: ir.Plan, *, slow: Iterable[str] = (), link_down: Iterable[str] = ()
) -> SimulatedStep:
    """A step of the plan with slow ranks (`"rank3=1.3"`) and lost links (`"network=0.5"`)."""
    from ..cost_model.what_if import simulate_step
    from .commands.simulate import parse_conditions

    return simulate_step(plan, parse_conditions(plan, list(slow), list(link_down)))
