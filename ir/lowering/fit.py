"""Whether a plan fits a model: its calls, operator splits and layouts exist there."""

from __future__ import annotations

from ..analysis.axes import Axes
from ..analysis.bound_sharding import bind
from ..errors import FileError, MismatchError
from ..model.layout import Factors, Layout
from ..model.mesh import Mesh
from ..model.model import Model
from ..model.verify import require
from ..plan.plan import Plan


def verify_fit(plan: Plan, model: Model, axes: dict[str, Axes]) -> None:
    """Raises FileError where a plan's layouts or options do not exist for this model."""
    functions = {f.name: f for f in model.functions}
    require(plan.model_chunks[-1][1] == len(model.calls), "$.stages", "not the model's calls")
    for i, layers in enumerate(plan.layers):
        name = plan.shardings[layers.sharding].function
        for call in model.calls[layers.first : layers.last]:
            require(call.function == name, f"$.layers[{i}]", f"{call.path} is a {call.function}")
    for i, sharding in enumerate(plan.shardings):
        where = f"$.shardings[{i}]"
        require(sharding.function in functions, where, f"no function {sharding.function!r}")
        function = functions[sharding.function]
        known = axes[function.name]
        try:
            bind(sharding, function, known)
        except MismatchError as error:
            raise FileError(f"{where}.op_splits: {error}") from None
        counts = len(sharding.boundary.inputs), len(sharding.boundary.outputs)
        have = len(function.inputs), len(function.outputs)
        require(counts == have, f"{where}.boundary", f"{counts} layouts, the function has {have}")
        for item, layout in zip(function.inputs, sharding.boundary.inputs, strict=True):
            ok = _exists(known.factors[item.value], layout, sharding.mesh)
            require(ok, f"{where}.boundary.inputs", f"{item.name} cannot lie as {layout}")


def _exists(factors: Factors, layout: Layout, mesh: Mesh) -> bool:
    degrees: dict[tuple[int, int], int] = {}
    for state, axis in zip(layout, mesh.axes, strict=True):
        if isinstance(state, tuple):
            if not (0 <= state[0] < len(factors) and 0 <= state[1] < len(factors[state[0]])):
                return False
            degrees[state] = degrees.get(state, 1) * axis.size
    return all(factors[dim][index] % n == 0 for (dim, index), n in degrees.items())
