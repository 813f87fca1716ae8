"""Structural checks of a plan that may come from a file: its parts must hold together."""

from __future__ import annotations

from math import gcd

from ..model.mesh import common_mesh
from ..model.verify import require
from .flat_shard import FULL
from .plan import Plan
from .sharding import Sharding
from .strategy import ROLES


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
    each = all(len(splits) == axes for splits in sharding.op_splits)
    require(each, f"{where}.op_splits", "one per mesh axis")
    boundary = sharding.boundary
    layouts = (*boundary.inputs, *boundary.outputs, *boundary.gradients, *boundary.tangents)
    for layout in layouts:
        require(layout is None or len(layout) == axes, f"{where}.boundary", "one per mesh axis")
