"""Plans and placements as targets of compiling and verifying."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from ..ir.lowering.cast import cast_model, in_precision
from ..ir.model.model import Model
from ..ir.passes import Observer
from ..ir.plan.placement import Placement
from ..ir.plan.plan import Optimizer, Plan
from ..ir.plan.program import GeneratedProgram, Kernels, with_kernels
from .formats import files
from .formats.model_source import ModelSource
from .placement import PLACEMENT, read_placement
from .plans.plan_object import load_plan


class CompileTarget(NamedTuple):
    """What a plan or placement is compiled to. `batch`: samples that the model is traced with, in
    `precision`; `model_digest` tells whether it is the plan's; `plan` is None for a placement.

    `program(model, source, kernels)` is the training program in the plan's precision,
    `float64_program(model)` the one that is verified to rounding.
    """

    name: str
    ranks: int
    batch: int | None
    program: Callable[[Model, str, Kernels], GeneratedProgram]
    float64_program: Callable[[Model], GeneratedProgram]
    precision: str | None = None
    model_digest: str | None = None
    plan: Plan | None = None


class VerificationCase(NamedTuple):
    """A target to verify, its model and where that comes from. `scale` (as JSON data) and `notes` say
    how the plan was scaled down."""

    target: CompileTarget
    model: Model
    source: ModelSource
    scale: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def target_of_plan(plan: Plan, observer: Observer | None = None) -> CompileTarget:
    """The target of a plan; `observer` is shown what the passes of `program` give."""
    from ..codegen import compile_program

    def program(model: Model, source: str, kernels: Kernels) -> GeneratedProgram:
        cast = in_precision(model, plan.precision, observer)
        return compile_program(plan, cast, source, observer, kernels=kernels)

    def float64_program(model: Model) -> GeneratedProgram:
        return compile_program(exact(plan), cast_model(model, "float64"))

    return CompileTarget(
        plan.strategy_text,
        plan.mesh.size,
        plan.global_batch,
        program,
        float64_program,
        plan.precision,
        plan.model_digest,
        plan,
    )


def exact(plan: Plan) -> Plan:
    """The plan in float64, without compression: neither rounding nor a compressed optimizer, which
    would differ from one process by design."""
    return replace(plan, precision="fp64", compression=(), optimizer=Optimizer("adamw", 2, 8))


def target_of_placement(placement: Placement) -> CompileTarget:
    from ..codegen.placement import compile_placement

    def program(model: Model, source: str, kernels: Kernels) -> GeneratedProgram:
        return with_kernels(compile_placement(placement, model, source), kernels)

    def float64_program(model: Model) -> GeneratedProgram:
        return compile_placement(placement, cast_model(model, "float64"))

    return CompileTarget(
        f"{placement.algorithm} placement of {placement.graph.name}",
        len(placement.target.devices),
        placement.global_batch or None,
        program,
        float64_program,
    )


def read_target(path: Path, observer: Observer | None = None) -> CompileTarget:
    """The target of a plan's or placement's file; raises FileError naming the file and the fault."""
    if files.format_of(path) == PLACEMENT:
        return target_of_placement(read_placement(path))
    return target_of_plan(load_plan(path), observer)
