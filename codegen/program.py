"""The whole program: function modules, stage modules, the table, and a main for torchrun."""

from __future__ import annotations

from math import prod
from pathlib import Path

from ..ir.analysis.dataflow import flow
from ..ir.compression.lower import lower as lower_program
from ..ir.compression.registry import LEADERS, PROGRAMS
from ..ir.files import dump
from ..ir.lowering.cast import PRECISIONS
from ..ir.lowering.reshard import Between
from ..ir.model import Model
from ..ir.plan.plan import Plan
from ..ir.program import Program, Table
from .compression import cpp
from .function import function_module
from .lower import Lowered, lower
from .main import main_module
from .stage import StageCode
from .table import table


def compile_program(plan: Plan, model: Model, source: str = "") -> Program:
    """The program of a plan. `source` is JSON that says what `main.py` trains: the keyword
    arguments of `ir.capture.materialize`.

    Raises MismatchError when plan and model do not belong together.
    """
    found = flow(model)
    lowered = lower(plan, model, found)
    between = Between(plan, model, found)
    files = {f"functions/{low.name}.py": _function(low, plan, model) for low in lowered}
    files["functions/__init__.py"] = _package(lowered)
    files["__init__.py"] = f'"""Generated: {plan.word} on {plan.mesh.size} devices."""\n'
    for number in range(len(plan.stages)):
        files[f"stage_{number}.py"] = StageCode(plan, model, between, lowered, number).source()
    files["main.py"] = main_module(plan.word, plan.mesh.size, PRECISIONS[plan.precision])
    files["source.json"] = source or "{}"
    made = table(plan, model, found, between, source)
    files |= kernels(made)
    return Program(tuple(sorted(files.items())), made)


def kernels(table: Table) -> dict[str, str]:
    """The C++ source of everything that travels compressed, one file per axis."""
    found = {}
    for axis in table.compression:
        mesh = table.meshes[axis.mesh]
        outer = prod(a.size for a in mesh.axes if a.name == axis.role) // axis.inner
        made = [lower_program(PROGRAMS[p], axis.inner, outer, total=True) for p in axis.programs]
        leader = LEADERS.get(axis.optimizer)
        made += [lower_program(p, axis.inner, outer) for p in leader.programs] if leader else []
        if axis.activations:
            program = PROGRAMS[axis.activations]
            sizes = () if program.result == "send" else (axis.inner, outer)
            made.append(lower_program(program, *sizes))
        found[axis.source] = cpp.source(*made)
    return found


def _function(low: Lowered, plan: Plan, model: Model) -> str:
    calls = [i for layers in low.layers for i in range(layers.first, layers.last)]
    paths = model.calls[calls[0]].path, model.calls[calls[-1]].path
    return function_module(low, plan, paths, len(calls))


def _package(lowered: tuple[Lowered, ...]) -> str:
    names = sorted(low.name for low in lowered)
    lines = ['"""The distinct functions of the model, each on one rank\'s shards."""', ""]
    lines += [f"from . import {name} as {name}" for name in names]
    return "\n".join([*lines, ""])


def write(program: Program, directory: Path) -> None:
    """Write the program's files; the folder is made, files of the same names are replaced."""
    for name, text in program.files:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (directory / "table.json").write_bytes(dump(program.table, "plait/program"))
