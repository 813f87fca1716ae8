"""Whether a plan fits a model: its calls, operator splits and layouts exist there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ..analysis.axes import Axes, OpStrategy
from ..analysis.bound_sharding import BoundSharding, bind
from ..errors import FileError, MismatchError
from ..model.layout import Factors, Layout
from ..model.mesh import Mesh
from ..model.model import Function, Model
from ..model.verify import require
from ..plan.plan import Plan
from ..plan.sharding import Boundary, Chunking, LoopFactor, boundary_values

T = TypeVar("T")


def verify_fit(plan: Plan, model: Model, axes: dict[str, Axes]) -> None:
    """Raises FileError where a plan's layouts or options do not exist for this model."""
    functions = {f.name: f for f in model.functions}
    require(plan.model_chunks[-1][1] == len(model.calls), "$.stages", "not the model's calls")
    paths = tuple(call.path for call in model.calls)
    require(plan.calls in ((), paths), "$.calls", "not the paths of the model's calls")
    batch_only = model.batch_only_calls()
    for i, layers in enumerate(plan.layers):
        name = plan.shardings[layers.sharding].function
        for number in range(layers.first, layers.last):
            call, once = model.calls[number], number in batch_only
            require(call.function == name, f"$.layers[{i}]", f"{call.path} is a {call.function}")
            said = "once per step" if once else "for every micro-batch"
            require(layers.batch_only == once, f"$.layers[{i}].batch_only", f"it runs {said}")
    for i, sharding in enumerate(plan.shardings):
        where = f"$.shardings[{i}]"
        function = _function(functions, sharding.function, where)
        known = axes[function.name]
        bound = _bound(lambda s=sharding, f=function, a=known: bind(s, f, a), where)
        _verify_boundary(sharding.boundary, function, f"{where}.boundary")
        for splits, op, known_op in zip(bound.strategies, function.ops, known.ops, strict=True):
            divides = _divides(splits, known_op.loop_factors, sharding.mesh)
            require(divides, f"{where}.op_splits", f"{op.place()} does not divide")
        for part, value, layout in _layouts(function, sharding.boundary):
            fits = _exists(known.factors[value], layout, sharding.mesh)
            require(fits, f"{where}.boundary.{part}", f"value {value} cannot lie as {layout}")
    for i, chunking in enumerate(plan.chunkings):
        where = f"$.chunkings[{i}]"
        function = _function(functions, chunking.function, where)
        _verify_boundary(chunking.sharding.boundary, function, f"{where}.sharding.boundary")
        _verify_value_shards(chunking, axes[function.name].factors, f"{where}.value_shards")


def _function(functions: dict[str, Function], name: str, where: str) -> Function:
    if name not in functions:
        raise FileError(f"{where}.function: no function {name!r:.80}")
    return functions[name]


def _bound(bind: Callable[[], BoundSharding], where: str) -> BoundSharding:
    """A sharding bound to its function; a split that does not exist is the file's error."""
    try:
        return bind()
    except MismatchError as error:
        raise FileError(f"{where}.op_splits: {error}") from None


def _verify_boundary(boundary: Boundary[T], function: Function, where: str) -> None:
    """A placement for every value at the function's boundary, and none where there is no value."""
    values = boundary_values(function)
    for part in ("inputs", "gradients", "outputs", "tangents"):
        have = [x is not None for x in getattr(boundary, part)]
        want = [x is not None for x in getattr(values, part)]
        require(have == want, f"{where}.{part}", f"not those of {function.name}: {len(want)}")


def _layouts(function: Function, boundary: Boundary[Layout]) -> Iterator[tuple[str, int, Layout]]:
    values = boundary_values(function)
    for part in ("inputs", "gradients", "outputs", "tangents"):
        for value, layout in zip(getattr(values, part), getattr(boundary, part), strict=True):
            if value is not None:
                yield part, value, layout


def _divides(
    options: tuple[OpStrategy, ...], loops: dict[str, tuple[int, ...]], mesh: Mesh
) -> bool:
    """Whether the axes that split a factor of an operator's loops divide its size."""
    degrees: dict[LoopFactor, int] = {}
    for option, axis in zip(options, mesh.axes, strict=True):
        for split in option.splits:
            degrees[split] = degrees.get(split, 1) * axis.size
    return all(loops[loop][number] % n == 0 for (loop, number), n in degrees.items())


def _verify_value_shards(chunking: Chunking, factors: Sequence[Factors], where: str) -> None:
    """Chunks divide a factor that exists, after the devices that shard it outside of them."""
    for value, (dim, index) in chunking.value_shards:
        there = value < len(factors) and dim < len(factors[value])
        there = there and index < len(factors[value][dim])
        require(there, where, f"value {value} has no factor {dim}.{index}")
        divides = factors[value][dim][index] % (chunking.outer * chunking.chunks) == 0
        require(divides, where, f"value {value} does not divide by {chunking.chunks} chunks")


def _exists(factors: Factors, layout: Layout, mesh: Mesh) -> bool:
    degrees: dict[tuple[int, int], int] = {}
    for state, axis in zip(layout, mesh.axes, strict=True):
        if isinstance(state, tuple):
            if not (0 <= state[0] < len(factors) and 0 <= state[1] < len(factors[state[0]])):
                return False
            degrees[state] = degrees.get(state, 1) * axis.size
    return all(factors[dim][index] % n == 0 for (dim, index), n in degrees.items())
