"""A traced model at another batch size, for planning: shapes change, numbers in the code do not.

Programs are compiled from a trace at their own batch size, where constants that depend on it are
right too; a plan needs shapes only.
"""

from __future__ import annotations

from msgspec.structs import replace

from ..analysis.axes import OpAxes
from ..analysis.dataflow import Dataflow, analyse_dataflow
from ..errors import MismatchError, at_least_one
from ..model.loops import Dims
from ..model.model import Argument, Function, Model, Op
from ..model.tensor import TensorType
from ..passes import Pass


class Rescale(Pass[Model, Model], frozen=True):
    """Change the number of samples to `batch`; raises MismatchError where a shape does not scale."""

    batch: int
    name = "rescale"

    def apply(self, value: Model) -> Model:
        return rescale(value, self.batch)


def rescale(model: Model, batch: int) -> Model:
    """The model with `batch` samples; raises UsageError for none, MismatchError where a shape does not
    scale."""
    at_least_one(batch, "samples in a global batch")
    if batch == model.batch:
        return model
    if model.batch < 2:
        raise MismatchError(
            f"{model.name} was traced with a batch of 1, which hides where the batch lies: trace it "
            f"with --batch {max(batch, 2)}"
        )
    dataflow = analyse_dataflow(model)
    functions = tuple(_function(f, dataflow, model.batch, batch) for f in model.functions)
    inputs = tuple(
        replace(i, type=TensorType((batch, *i.type.shape[1:]), i.type.dtype)) if i.batched else i
        for i in model.inputs
    )
    half = None if model.half is None else rescale(model.half, batch)
    return replace(model, functions=functions, inputs=inputs, batch=batch, half=half)


def _function(function: Function, dataflow: Dataflow, old: int, new: int) -> Function:
    types = tuple(
        _type(function, value, dataflow, old, new) for value in range(len(function.types))
    )
    known, batch = dataflow.axes[function.name].ops, dataflow.batch_factors[function.name]
    ops = (
        _op(op, _batch_loops(axes, batch), (function.types, types), (old, new))
        for op, axes in zip(function.ops, known, strict=True)
    )
    return replace(function, types=types, ops=tuple(ops))


def _batch_loops(known: OpAxes, batch: frozenset[int]) -> tuple[tuple[int, Dims], ...]:
    """Literal arguments that are sizes: their positions, and of each dim the loops over samples."""
    if known.declared is None:
        return ()
    over = {option.loop for option in known.options if option.factor_id in batch}
    return tuple(
        (position, tuple(tuple(loop for loop in dim if loop in over) for dim in dims))
        for position, dims in known.declared.shapes
    )


def _type(function: Function, value: int, dataflow: Dataflow, old: int, new: int) -> TensorType:
    shape = list(function.types[value].shape)
    shard = dataflow.batch_shard(function, value)
    if shard is not None:
        dim = shard[0]
        if shape[dim] * new % old:
            raise MismatchError(
                f"{function.name}: a dimension of {shape[dim]} at batch {old} does "
                f"not scale to batch {new}"
            )
        shape[dim] = shape[dim] * new // old
    return TensorType(tuple(shape), function.types[value].dtype)


def _op(
    op: Op,
    sizes: tuple[tuple[int, Dims], ...],
    types: tuple[tuple[TensorType, ...], tuple[TensorType, ...]],
    samples: tuple[int, int],
) -> Op:
    """Literal shapes of the results follow them, and literal sizes follow their loops."""
    before, after = types
    old, new = samples
    changed: dict[Argument, Argument] = {
        before[r].shape: after[r].shape for r in op.results if r >= 0
    }

    def follow(argument: Argument) -> Argument:
        return changed.get(argument, argument) if isinstance(argument, tuple) else argument

    args = [follow(a) for a in op.args]
    for position, dims in sizes:
        literal = op.args[position]
        if args[position] == literal and isinstance(literal, tuple) and len(literal) == len(dims):
            args[position] = tuple(
                size * new // old if loops and isinstance(size, int) else size
                for size, loops in zip(literal, dims, strict=True)
            )
    return replace(op, args=tuple(args))
