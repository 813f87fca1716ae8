"""The program of a placement: a module per rank, the table, and a main for torchrun."""

from __future__ import annotations

from ...ir.files.json_files import digest
from ...ir.model.mesh import Axis, Mesh
from ...ir.model.model import Model, Parameter
from ...ir.model.tensor import TensorType
from ...ir.plan.placement import Placement
from ...ir.plan.program import (
    PLACED_SCHEDULE,
    BatchTensor,
    GeneratedProgram,
    ParameterSpec,
    ProgramTable,
)
from ..main import main_module
from ..python_source import comment_text, milliseconds
from .actions import rank_actions
from .assignment import PlacedStep, assign
from .rank import RankCode, value_names


def compile_placement(placement: Placement, model: Model, source: str = "") -> GeneratedProgram:
    """The program of a placement of `model`'s step. `source` is JSON that says what `main.py`
    trains: the keyword arguments of `ir.capture.materialize`.

    Raises MismatchError when placement and model do not belong together, UsageError when an
    operator cannot be placed apart from the rest."""
    assignment = assign(placement, model)
    names, title = value_names(assignment), f"{comment_text(placement.algorithm)} placement"
    files = {"__init__.py": f'"""Generated: {title} on {assignment.ranks} devices."""\n'}
    for number, todo in enumerate(rank_actions(assignment)):
        code = RankCode(assignment, names, todo, number)
        files[f"rank_{number}.py"] = code.source(_busy_text(placement, number))
    files["main.py"] = main_module(title, assignment.ranks, _dtype(model))
    files["source.json"] = source or "{}"
    return GeneratedProgram(
        tuple(sorted(files.items())), _table(placement, model, assignment, source)
    )


def _busy_text(placement: Placement, number: int) -> str:
    busy = sum(
        node.compute_us
        for node in placement.graph.nodes
        if placement.device[str(node.id)] == number
    )
    speed = placement.target.devices[number].speed
    return (
        f"predicted to compute for {milliseconds(busy / speed * 1e-6)} "
        f"of {milliseconds(placement.makespan_us * 1e-6)}"
    )


def _dtype(model: Model) -> str:
    return next((p.type.dtype for p in model.parameters if p.type.is_float), "float32")


def _table(placement: Placement, model: Model, assignment: PlacedStep, source: str) -> ProgramTable:
    """Table of one micro-batch with one stage per rank; every tensor is unsharded on one rank."""
    mesh = Mesh((Axis("pp", assignment.ranks),))
    homes = {
        u.state_tensor: d
        for u, d in zip(assignment.units, assignment.device, strict=True)
        if u.state_tensor and not u.update
    }
    return ProgramTable(
        model=model.name,
        model_digest=model.fingerprint(),
        plan_digest=digest(placement),
        cluster_digest=digest(placement.target),
        mesh=mesh,
        meshes=(mesh,),
        loss_mesh=0,
        stages=assignment.ranks,
        micro_batches=1,
        schedule=PLACED_SCHEDULE,
        global_batch=model.batch,
        precision=_dtype(model),
        optimizer="adamw",
        state_tensors=tuple(_parameter_spec(p, homes[p.name]) for p in model.parameters),
        calls=(),
        batch=tuple(
            BatchTensor(i.name, i.path, i.type, _factors(i.type), ("R", "R")) for i in model.inputs
        ),
        stage_transfers=(),
        source=source,
        constants=model.constants,
    )


def _parameter_spec(tensor: Parameter, home: int) -> ParameterSpec:
    return ParameterSpec(
        name=tensor.name,
        kind=tensor.kind,
        type=tensor.type,
        factors=_factors(tensor.type),
        layout=("R",),
        stages=(home,),
        trainable=tensor.trainable,
        aliases=tensor.aliases,
        values=tensor.values,
    )


def _factors(type_: TensorType) -> tuple[tuple[int, ...], ...]:
    return tuple((size,) for size in type_.shape)
