"""Structural checks of a plan that may come from a file: its parts must hold together."""

from __future__ import annotations

from ...errors import UsageError
from ...files.json_files import digest
from ...model.mesh import MICRO, Axis, common_mesh
from ...model.verify import require
from ..plan import Layers, Plan
from ..schedules.registry import check_schedule
from .amounts import verify_stage_amounts, verify_work
from .groups import verify_groups
from .sharding import verify_axis_sharding, verify_sharding
from .strategy import verify_compression, verify_strategy

MOST_DEVICES = 1 << 20  # of a plan: stages and ranks are listed one by one
MOST_STEPS = 1 << 19  # of a schedule: forwards of all stages, chunks and micro-batches


def verify_plan(plan: Plan) -> None:
    """Raises FileError naming the JSON path; whether a plan fits a model is checked with the model."""
    if plan.groups:
        verify_groups(plan)
        return
    require(not plan.cluster.parts, "$.groups", "a mixed cluster has a group for every stage")
    named = all(layers.stage is None for layers in plan.layers)
    require(named, "$.layers", "name stages, which are no device groups")
    made_for = plan.cluster_digest in (None, digest(plan.cluster))
    require(made_for, "$.cluster_digest", "the plan was made for another cluster: plan again")
    require(plan.mesh.size == plan.cluster.devices, "$.mesh", "not the cluster's devices")
    require(plan.mesh.size <= MOST_DEVICES, "$.mesh", f"more than {MOST_DEVICES} devices")
    require(plan.global_batch % plan.micro_batches == 0, "$.micro_batches", "must divide the batch")
    calls = _verify_stages(plan)
    require(plan.calls == () or len(plan.calls) == calls, "$.calls", f"{calls} are in the stages")
    for i, sharding in enumerate(plan.shardings):
        where = f"$.shardings[{i}]"
        verify_sharding(sharding, where)
        stages = sharding.strategy.stages
        require(stages == len(plan.stages), f"{where}.strategy", f"has {stages} stages")
        require(sharding.strategy.devices == plan.mesh.size, f"{where}.strategy", "other devices")
        micro = sharding.mesh.axes[0]
        whole = micro in (Axis(MICRO, 1), Axis(MICRO, plan.micro_batches))
        require(whole, f"{where}.mesh.axes[0]", "not the plan's micro-batches")
    _verify_layers(plan, calls)
    mesh = common_mesh([s.mesh for s in plan.strategies])
    require(plan.mesh == mesh, "$.mesh", "not the layers' grid")
    for s, stage in enumerate(plan.stages):
        verify_stage_amounts(stage, f"$.stages[{s}]", plan.strategies)
    for i, chunking in enumerate(plan.chunkings):
        where = f"$.chunkings[{i}]"
        known = any(s.function == chunking.function for s in plan.shardings)
        require(known, f"{where}.function", f"no sharding of {chunking.function!r:.80}")
        verify_axis_sharding(chunking.sharding, f"{where}.sharding")
    verify_compression(plan)
    require(plan.prediction.step_seconds > 0, "$.prediction.step_seconds", "not above 0")


def _verify_stages(plan: Plan) -> int:
    """Stages, chunks and schedule; the number of calls."""
    counts = {len(stage.model_chunks) for stage in plan.stages}
    require(len(counts) == 1 and 0 not in counts, "$.stages", "not equally many pieces each")
    steps = len(plan.stages) * plan.chunks_per_stage * plan.micro_batches
    require(steps <= MOST_STEPS, "$.micro_batches", f"a schedule of {steps} forwards is too long")
    try:
        check_schedule(plan.schedule, len(plan.stages), plan.micro_batches, plan.chunks_per_stage)
    except UsageError as error:
        require(False, "$.schedule", str(error))
    at = 0
    for i, (first, last) in enumerate(plan.model_chunks):
        place = plan.chunk_map.place(i)
        where = f"$.stages[{place.stage}].model_chunks[{place.chunk}]"
        require(first == at and last > at, where, "pieces must follow on")
        same = all(
            plan.stages[s].model_chunks[c] == (first, last) for s, c in plan.chunk_map.places(i)
        )
        require(same, where, "other calls than on the other stage that runs them")
        at = last
    return at


def _verify_layers(plan: Plan, calls: int) -> None:
    """Runs of layers follow on, each inside one stage, and cover the calls."""
    at = 0
    chunks = iter(plan.model_chunks)
    end = 0  # of the chunk that the run lies in
    for i, layers in enumerate(plan.layers):
        where = f"$.layers[{i}]"
        require(layers.first == at and layers.last > at, where, "layers must follow on")
        if at == end:
            _, end = next(chunks, (0, 0))
        require(layers.last <= end, where, "layers of two stages")
        at = layers.last
        _verify_run(plan, layers, where)
    require(at == calls, "$.layers", "do not cover the stages")


def _verify_run(plan: Plan, layers: Layers, where: str) -> None:
    require(layers.sharding < len(plan.shardings), f"{where}.sharding", "no such")
    defined = not layers.memory.chunked or plan.chunking_of(layers) is not None
    require(defined, f"{where}.memory", f"no division says how to {layers.memory}")
    verify_strategy(plan.strategy_of(layers), f"$.shardings[{layers.sharding}].strategy")
    for direction in ("forward", "backward"):
        verify_work(getattr(layers, direction), f"{where}.{direction}", plan.mesh.size)
