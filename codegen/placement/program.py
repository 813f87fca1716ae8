"""The program of a placement: a module per rank, the table, and a main for torchrun."""

from __future__ import annotations

from ...ir.files import digest
from ...ir.mesh import Axis, Mesh
from ...ir.model import Model, Parameter
from ...ir.placement import Placement
from ...ir.program import PLACED, BatchTensor, Held, Program, Table
from ...ir.tensor import TensorType
from ..main import main_module
from ..python_source import milliseconds, remark
from .actions import actions
from .assignment import Assignment, assign
from .rank import RankCode, value_names


def compile_placement(placement: Placement, model: Model, source: str = "") -> Program:
    """The program of a placement of `model`'s step. `source` is JSON that says what `main.py` trains:
    the keyword arguments of `ir.capture.materialize`.

    Raises MismatchError when placement and model do not belong together, UsageError when an operator
    cannot be placed apart from the rest.
    """
    made = assign(placement, model)
    names, word = value_names(made), f"{remark(placement.algorithm)} placement"
    files = {"__init__.py": f'"""Generated: {word} on {made.ranks} devices."""\n'}
    for number, todo in enumerate(actions(made)):
        code = RankCode(made, names, todo, number)
        files[f"rank_{number}.py"] = code.source(_busy(placement, number))
    files["main.py"] = main_module(word, made.ranks, _dtype(model))
    files["source.json"] = source or "{}"
    return Program(tuple(sorted(files.items())), _table(placement, model, made, source))


def _busy(placement: Placement, number: int) -> str:
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


def _table(placement: Placement, model: Model, made: Assignment, source: str) -> Table:
    """A pipeline of one micro-batch whose stages are the ranks, as far as tensors lie whole on one."""
    mesh = Mesh((Axis("pp", made.ranks),))
    homes = {
        u.held: d for u, d in zip(made.units, made.device, strict=True) if u.held and not u.update
    }
    return Table(
        model=model.name,
        model_digest=model.fingerprint(),
        plan_digest=digest(placement),
        mesh=mesh,
        meshes=(mesh,),
        loss=0,
        stages=made.ranks,
        micro_batches=1,
        schedule=PLACED,
        global_batch=model.batch,
        precision=_dtype(model),
        optimizer="adamw",
        held=tuple(_held(p, homes[p.name]) for p in model.parameters),
        calls=(),
        batch=tuple(
            BatchTensor(i.name, i.path, i.type, _factors(i.type), ("R", "R")) for i in model.inputs
        ),
        crossing=(),
        source=source,
    )


def _held(tensor: Parameter, home: int) -> Held:
    return Held(
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
