"""Structural checks of values that may come from a file: every reference must resolve.

A file's types are checked when it is read; here is what types cannot say. Nothing in a file is ever
executed: operators are looked up among torch's registered ones, names are only ever data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import gcd

from .analysis.axes import Axes
from .errors import FileError
from .layout import Factors, Layout
from .lowering.common_mesh import common_mesh
from .mesh import Mesh
from .model import Call, Function, Model, Op
from .plan.flat_shard import FULL
from .plan.plan import Plan, Sharding
from .plan.strategy import ROLES
from .tensor import ITEM_BYTES, TensorType

IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*")
TARGET = re.compile(r"\w+\.\w+\.\w+")
MOST_ELEMENTS = 1 << 56


def require(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise FileError(f"{where}: {what}")


def verify_model(model: Model) -> None:
    """Raises FileError naming the JSON path of the first thing that does not hold together."""
    functions = {f.name: f for f in model.functions}
    require(len(functions) == len(model.functions), "$.functions", "two functions share a name")
    for i, function in enumerate(model.functions):
        verify_function(function, f"$.functions[{i}]")
    parameters = {p.name for p in model.parameters}
    require(len(parameters) == len(model.parameters), "$.parameters", "two share a name")
    for i, parameter in enumerate(model.parameters):
        verify_type(parameter.type, f"$.parameters[{i}].type")
    known = set()
    for i, item in enumerate(model.inputs):
        require(bool(IDENTIFIER.fullmatch(item.name)), f"$.inputs[{i}].name", "not an identifier")
        verify_type(item.type, f"$.inputs[{i}].type")
        known.add(item.name)
    for i, call in enumerate(model.calls):
        verify_call(call, f"$.calls[{i}]", functions, parameters, known)
        known.update(call.results)
    require(model.loss in known, "$.loss", f"no call makes {model.loss!r}")
    require(1 <= model.batch < 1 << 40, "$.batch", f"{model.batch} is not a batch size")


def verify_type(type_: TensorType, where: str) -> None:
    require(type_.dtype in ITEM_BYTES, where, f"unknown element type {type_.dtype!r}")
    require(all(size >= 0 for size in type_.shape), where, "negative size")
    require(type_.elements < MOST_ELEMENTS, where, "absurd size")


def verify_function(function: Function, where: str) -> None:
    """Single assignment, uses after definitions, everything in range."""
    require(bool(IDENTIFIER.fullmatch(function.name)), f"{where}.name", "not an identifier")
    count = len(function.types)
    for i, type_ in enumerate(function.types):
        verify_type(type_, f"{where}.types[{i}]")
    defined: set[int] = set()

    def define(values: Iterable[int], path: str) -> None:
        for value in values:
            require(0 <= value < count, path, f"no value {value}")
            require(value not in defined, path, f"value {value} is made twice")
            defined.add(value)

    define([i.value for i in function.inputs], f"{where}.inputs")
    require(0 <= function.forward <= len(function.ops), f"{where}.forward", "out of range")
    for i, op in enumerate(function.ops):
        if i == function.forward:
            define(_tangents(function), f"{where}.outputs")
        verify_op(op, f"{where}.ops[{i}]", defined)
        define([r for r in op.results if r >= 0], f"{where}.ops[{i}].results")
    if function.forward == len(function.ops):
        define(_tangents(function), f"{where}.outputs")
    ends = [o.value for o in function.outputs]
    ends += [i.gradient for i in function.inputs if i.gradient is not None]
    require(defined.issuperset(ends), f"{where}.outputs", "a value that nothing makes")


def _tangents(function: Function) -> list[int]:
    return [o.tangent for o in function.outputs if o.tangent is not None]


def verify_op(op: Op, where: str, defined: set[int]) -> None:
    require(bool(TARGET.fullmatch(op.target)), f"{where}.target", f"{op.target!r} is no operator")
    require(all(IDENTIFIER.fullmatch(k) for k in op.kwargs), f"{where}.kwargs", "not identifiers")
    for value in op.operands():
        require(value in defined, f"{where}.args", f"value {value} is used before it is made")


def verify_call(
    call: Call, where: str, functions: dict[str, Function], parameters: set[str], known: set[str]
) -> None:
    require(call.function in functions, f"{where}.function", f"no function {call.function!r}")
    function = functions[call.function]
    counts = (
        ("parameters", len(call.parameters), len(function.state_inputs())),
        ("arguments", len(call.arguments), len(function.activations())),
        ("results", len(call.results), len(function.outputs)),
    )
    for field, have, want in counts:
        require(have == want, f"{where}.{field}", f"{have} given, {call.function} has {want}")
    for name in call.parameters:
        require(name in parameters, f"{where}.parameters", f"no parameter {name!r}")
    for name in call.arguments:
        require(name in known, f"{where}.arguments", f"{name!r} is not made before")
    for name in call.results:
        require(bool(IDENTIFIER.fullmatch(name)), f"{where}.results", "not an identifier")
        require(name not in known, f"{where}.results", f"{name!r} is made twice")
    for result, buffer in call.updates:
        require(result in call.results, f"{where}.updates", f"no result {result!r}")
        require(buffer in parameters, f"{where}.updates", f"no buffer {buffer!r}")


def verify_plan(plan: Plan) -> None:
    """Raises FileError naming the JSON path; whether a plan fits a model is checked with the model."""
    require(plan.mesh.size == plan.cluster.devices, "$.mesh", "not the cluster's devices")
    for i, axis in enumerate(plan.mesh.axes):
        require(axis.size >= 1, f"$.mesh.axes[{i}]", "not a size")
    require(plan.micro_batches >= 1, "$.micro_batches", "at least one")
    require(plan.global_batch % plan.micro_batches == 0, "$.micro_batches", "must divide the batch")
    counts = {len(stage.model_chunks) for stage in plan.stages}
    require(len(counts) == 1 and 0 not in counts, "$.stages", "not equally many pieces each")
    at = 0
    for i, (first, last) in enumerate(plan.model_chunks):
        where = f"$.stages[{i % len(plan.stages)}].model_chunks[{i // len(plan.stages)}]"
        require(first == at and last > at, where, "pieces must follow on")
        at = last
    calls, at = at, 0
    for i, layers in enumerate(plan.layers):
        require(layers.first == at and layers.last > at, f"$.layers[{i}]", "layers must follow on")
        require(0 <= layers.sharding < len(plan.shardings), f"$.layers[{i}].sharding", "no such")
        defined = not layers.memory.chunked or plan.chunking_of(layers) is not None
        require(defined, f"$.layers[{i}].memory", f"no division says how to {layers.memory}")
        at = layers.last
    require(at == calls, "$.layers", "do not cover the stages")
    for i, sharding in enumerate(plan.shardings):
        verify_sharding(sharding, f"$.shardings[{i}]")
        stages = sharding.strategy.stages
        require(stages == len(plan.stages), f"$.shardings[{i}].strategy", f"has {stages} stages")
    require(
        plan.mesh == common_mesh([s.mesh for s in plan.strategies]),
        "$.mesh",
        "not the layers' grid",
    )


def verify_sharding(sharding: Sharding, where: str) -> None:
    for i, (role, _) in enumerate(sharding.strategy.axes):
        require(role in ROLES, f"{where}.strategy.axes[{i}]", f"unknown role {role!r}")
    over, under = sharding.strategy.fraction
    proper = 0 < over < under and gcd(over, under) == 1 and sharding.strategy.supports_fraction
    require((over, under) == FULL or proper, f"{where}.strategy.fraction", "not between 0 and 1")
    sizes = [size for role, size in sharding.strategy.axes if not ROLES[role].stages]
    mesh = [axis.size for axis in sharding.mesh.axes[1:]]
    require(mesh == sizes, f"{where}.mesh", "not micro and the strategy's axes")
    axes = len(sharding.mesh.axes)
    require(all(len(c) == axes for c in sharding.choices), f"{where}.choices", "one per mesh axis")
    boundary = sharding.boundary
    layouts = (*boundary.inputs, *boundary.outputs, *boundary.gradients, *boundary.tangents)
    for layout in layouts:
        require(layout is None or len(layout) == axes, f"{where}.boundary", "one per mesh axis")


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
        require(len(sharding.choices) == len(function.ops), f"{where}.choices", "one per operator")
        for chosen, op in zip(sharding.choices, known.ops, strict=True):
            fits = all(0 <= number < len(op.options) for number in chosen)
            require(fits, f"{where}.choices", f"no option {max(chosen)}")
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
