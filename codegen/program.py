"""The generated program: function modules, stage modules, the table, and a main for torchrun."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

from msgspec.structs import replace

from ..ir.analysis.dataflow import AnalyseAxes, Dataflow
from ..ir.compression.identity import uncompressed
from ..ir.compression.kernel import KernelPipeline
from ..ir.compression.lower import lower as lower_program
from ..ir.compression.registry import COMPRESSED_OPTIMIZERS, PROGRAMS
from ..ir.files.json_files import dump
from ..ir.files.reading import naming
from ..ir.lowering.cast import PRECISIONS
from ..ir.lowering.overlap import Overlap
from ..ir.lowering.plan_layouts import PlanLayouts
from ..ir.model.model import Model
from ..ir.passes import Observer, Pass, run
from ..ir.plan.groups.view import group_view
from ..ir.plan.plan import Plan
from ..ir.plan.program import (
    PLAN_FILE,
    CompressedAxis,
    GeneratedProgram,
    GroupProgram,
    Kernels,
    ProgramTable,
    sealed,
    with_kernels,
)
from .compression import cpp, triton
from .function import function_module
from .group_table import GroupPlace, group_program, refuse_unrunnable, whole_table
from .lower import LoweredFunction, lower
from .main import main_module
from .stage import StageCode
from .table import program_table


class FunctionModule(Pass[LoweredFunction, str], frozen=True):
    """Write the Python module of one lowered function of a plan."""

    plan: Plan
    model: Model
    name = "function"

    def apply(self, value: LoweredFunction) -> str:
        return _function_source(value, self.plan, self.model)


class StageModule(Pass[StageCode, str], frozen=True):
    """Write the Python module of one pipeline stage."""

    name = "stage"

    def apply(self, value: StageCode) -> str:
        return value.source()


def compile_program(
    plan: Plan,
    model: Model,
    source: str = "",
    observer: Observer | None = None,
    overlap: Overlap | None = None,
    kernels: Kernels = "aten",
) -> GeneratedProgram:
    """The program of a plan. `source` is JSON that says what `main.py` trains: the keyword
    arguments of `ir.capture.materialize`. `observer` is shown what every pass gives. `overlap` says
    how much may travel beside other work; None: a share of the device's memory. `kernels` run its
    functions.

    Raises MismatchError when plan and model do not belong together.
    """
    overlap = overlap or Overlap.on(plan.cluster.device)
    dataflow = run(AnalyseAxes(), model, observer)
    data_table = _group_tables(plan, model, dataflow, source) if plan.groups else None
    if data_table is None:
        layouts = PlanLayouts(plan, dataflow)
        passes = overlap, observer, kernels
        files = _modules(plan, model, dataflow, range(len(plan.stages)), passes)
        data_table = program_table(plan, model, dataflow, layouts, source)
        data_table = replace(data_table, in_flight_bytes=overlap.in_flight_bytes)
        files |= kernel_sources(data_table)
    else:
        files = _group_modules(plan, data_table, model, dataflow, (observer, kernels))
    kinds = {p.type.dtype for p in model.parameters if p.type.is_float}
    converts = len(kinds) == 1 and not plan.optimizer.master_weights
    dtype = PRECISIONS[plan.precision] if converts else None
    files["__init__.py"] = _docstring(plan)
    files["main.py"] = main_module(plan.strategy_text, plan.mesh.size, dtype)
    files["source.json"] = source or "{}"
    files[PLAN_FILE] = dump(plan, "plait/plan").decode()
    return with_kernels(GeneratedProgram(tuple(sorted(files.items())), data_table), kernels)


def _docstring(plan: Plan) -> str:
    return f'"""Generated: {plan.strategy_text} on {plan.mesh.size} devices."""\n'


def _modules(
    plan: Plan,
    model: Model,
    dataflow: Dataflow,
    stages: Iterable[int],
    passes: tuple[Overlap, Observer | None, Kernels],
) -> dict[str, str]:
    """The modules of these stages, and of the functions that they call."""
    overlap, observer, kernels = passes
    lowered = lower(plan, model, dataflow, overlap, observer, kernels)
    layouts, module = PlanLayouts(plan, dataflow), FunctionModule(plan, model)
    numbers = set(stages)
    used = tuple(
        low
        for low in lowered
        if any(x.batch_only or plan.stage_of_layers(x) in numbers for x in low.layers)
    )
    files = {f"functions/{low.name}.py": run(module, low, observer) for low in used}
    files["functions/__init__.py"] = _package_source(used)
    for number in numbers:
        code = StageCode(plan, model, layouts, lowered, number, bool(overlap.in_flight_bytes))
        files[f"stage_{number}.py"] = run(StageModule(), code, observer)
    return files


def _group_tables(plan: Plan, model: Model, dataflow: Dataflow, source: str) -> ProgramTable:
    """The tables of all device groups; those that run the same on devices of one kind share a folder."""
    refuse_unrunnable(plan, model)
    folders: dict[str, str] = {}
    groups: list[GroupProgram] = []
    for number, group in enumerate(plan.groups):
        view = group_view(plan, number)
        key = f"{view.stage} {replace(view.plan, calls=()).digest}"
        folder = folders.setdefault(key, f"group_{len(folders)}")
        place = GroupPlace(folder, plan.ranks_of(number)[0], group.micro_batches)
        groups.append(group_program(view, place, model, dataflow, source))
    return whole_table(plan, model, tuple(groups), source)


def _group_modules(
    plan: Plan,
    table: ProgramTable,
    model: Model,
    dataflow: Dataflow,
    passes: tuple[Observer | None, Kernels],
) -> dict[str, str]:
    """The modules of every group's folder. Groups exchange gradients themselves, so nothing travels
    beside other work."""
    files: dict[str, str] = {}
    for number, group in enumerate(table.groups):
        if f"{group.folder}/__init__.py" not in files:
            view = group_view(plan, number)
            alone = Overlap(in_flight_bytes=0), *passes
            modules = _modules(view.plan, model, dataflow, [view.stage], alone)
            files[f"{group.folder}/__init__.py"] = _docstring(view.plan)
            files |= {f"{group.folder}/{name}": text for name, text in modules.items()}
    return files


def kernel_sources(table: ProgramTable) -> dict[str, str]:
    """Source of all compressed exchanges by file name, a file of C++ and one of Triton per axis. Triton
    has those of early steps and small tensors as well, which are not compressed."""
    sources = {}
    for axis in table.compression:
        if not axis.has_kernels:
            continue
        mesh = table.meshes[axis.mesh]
        outer = prod(a.size for a in mesh.axes if a.name == axis.role) // axis.inner
        pipelines = [*kernel_pipelines(axis, outer)]
        sources[axis.source] = cpp.source(*(p for p, compressed in pipelines if compressed))
        sources[axis.triton_source] = triton.source(*(pipeline for pipeline, _ in pipelines))
    return sources


def kernel_pipelines(axis: CompressedAxis, outer: int) -> Iterator[tuple[KernelPipeline, bool]]:
    """What an axis over `outer` nodes runs, and whether it is compressed: every program, and what it
    does without compression."""
    optimizer = COMPRESSED_OPTIMIZERS.get(axis.optimizer)
    summed = [(PROGRAMS[name], True) for name in axis.programs]
    averaged = [(program, False) for program in (optimizer.programs if optimizer else ())]
    sent = [(PROGRAMS[axis.activations], False)] if axis.activations else []
    for program, total in (*summed, *averaged, *sent):
        if program.collective == "send":
            yield lower_program(program), True
            continue
        for one in (program, uncompressed(program)):
            yield lower_program(one, axis.inner, outer, total), one is program


def _function_source(low: LoweredFunction, plan: Plan, model: Model) -> str:
    calls = [i for layers in low.layers for i in range(layers.first, layers.last)]
    paths = model.calls[calls[0]].path, model.calls[calls[-1]].path
    return function_module(low, plan, paths, len(calls))


def _package_source(lowered: tuple[LoweredFunction, ...]) -> str:
    names = sorted(low.name for low in lowered)
    lines = ['"""The distinct functions of the model, each on one rank\'s shards."""', ""]
    lines += [f"from . import {name} as {name}" for name in names]
    return "\n".join([*lines, ""])


def write_program(program: GeneratedProgram, directory: Path) -> None:
    """Write the program's files; creates the folder and replaces files of the same names. Raises
    FileError."""
    with naming(directory):
        for name, text in program.files:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (directory / "table.json").write_bytes(dump(sealed(program.table), "plait/program"))
