"""What a file decided, plan or placement, as far as compiling and verifying it go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from ..ir.lowering.cast import lift_dtypes
from ..ir.model import Model
from ..ir.placement import Placement
from ..ir.plan.plan import Plan
from ..ir.program import Program


class Decision(NamedTuple):
    """`program(model, source)` compiles it for its precision, `wide(model)` for float64, both of a
    model traced with `batch` samples."""

    name: str
    ranks: int
    batch: int | None
    program: Callable[[Model, str], Program]
    wide: Callable[[Model], Program]


class Subject(NamedTuple):
    """What is verified: a decision, its model and where that comes from; `scale` says how it was made
    smaller, `notes` in words."""

    decision: Decision
    model: Model
    source: str
    seq: int | None
    scale: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def of_plan(plan: Plan) -> Decision:
    from ..codegen import compile_program
    from ..ir.lowering.cast import in_precision

    return Decision(
        plan.word,
        plan.mesh.size,
        plan.global_batch,
        lambda model, source: compile_program(plan, in_precision(model, plan.precision), source),
        lambda model: compile_program(
            # compression rounds what travels: what is verified is all the rest
            uncompressed(plan),
            lift_dtypes(model, "float64"),
        ),
    )


def uncompressed(plan: Plan) -> Plan:
    """The plan in exact numbers: nothing is rounded on the wire, sums are not left to an optimizer."""
    from ..ir.plan.plan import Optimizer

    return replace(plan, precision="fp64", compression=(), optimizer=Optimizer("adamw", 2, 8))


def of_placement(placement: Placement) -> Decision:
    from ..codegen.placement import compile_placement

    return Decision(
        f"{placement.algorithm} placement of {placement.graph.name}",
        len(placement.target.devices),
        placement.global_batch or None,
        lambda model, source: compile_placement(placement, model, source),
        lambda model: compile_placement(placement, lift_dtypes(model, "float64")),
    )


def read_decision(path: Path) -> Decision:
    """Raises FileError naming the file and what is wrong with it; MismatchError for a placement of
    a graph, which has no model to compile."""
    from .commands.common import format_of
    from .placement import PLACEMENT, read_placement
    from .plan_object import load_plan

    if format_of(path) == PLACEMENT:
        return of_placement(read_placement(path))
    return of_plan(load_plan(path))
