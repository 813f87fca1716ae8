"""Structural checks of a plan whose stages are device groups."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from ...files.json_files import digest
from ...model.mesh import MICRO, Axis, Mesh
from ...model.verify import require
from ..groups.view import calls_of
from ..plan import Layers, Plan
from .amounts import verify_stage_amounts, verify_work
from .sharding import verify_sharding
from .strategy import verify_strategy

MOST_GROUPS = 1 << 12


def verify_groups(plan: Plan) -> None:
    """Raises FileError naming the JSON path: groups are devices that exist, once each, and tile the
    calls and micro-batches of a step."""
    made_for = plan.cluster_digest in (None, digest(plan.cluster))
    require(made_for, "$.cluster_digest", "the plan was made for another cluster: plan again")
    require(len(plan.groups) == len(plan.stages), "$.groups", "not one for every stage")
    require(len(plan.groups) <= MOST_GROUPS, "$.groups", f"more than {MOST_GROUPS}")
    require(plan.global_batch % plan.micro_batches == 0, "$.micro_batches", "must divide the batch")
    require(plan.schedule == "1f1b", "$.schedule", "device groups run 1f1b alone")
    for number in range(len(plan.groups)):
        _verify_devices(plan, number, f"$.groups[{number}]")
    for one, other in combinations(range(len(plan.groups)), 2):
        shared = plan.groups[one].overlaps(plan.groups[other])
        require(not shared, f"$.groups[{other}]", "devices that another group has")
    used = sum(group.devices for group in plan.groups)
    require(plan.mesh == Mesh((Axis("dp", used),)), "$.mesh", "not the row of the groups' devices")
    _verify_tiling(plan)
    _verify_shardings(plan)
    for i, layers in enumerate(plan.layers):
        _verify_run(plan, layers, f"$.layers[{i}]")
    for number in range(len(plan.stages)):
        _verify_stage(plan, number, f"$.stages[{number}]")
    require(plan.compression == (), "$.compression", "device groups send no compressed messages")
    require(plan.prediction.step_seconds > 0, "$.prediction.step_seconds", "not above 0")


def _verify_devices(plan: Plan, number: int, where: str) -> None:
    group, parts = plan.groups[number], plan.cluster.parts or (plan.cluster,)
    require(group.part < len(parts), f"{where}.part", "no such")
    most = parts[group.part].devices
    fits = group.first_device + group.devices <= most
    require(fits, f"{where}.first_device", f"beyond the {most} devices of its part")
    ordered = sorted(set(group.micro_batches)) == list(group.micro_batches)
    inside = group.micro_batches != () and group.micro_batches[-1] < plan.micro_batches
    require(ordered and inside, f"{where}.micro_batches", "not micro-batches of a step, in order")
    one = len(plan.stages[number].model_chunks) == 1
    require(one, f"$.stages[{number}].model_chunks", "not one")


def _verify_tiling(plan: Plan) -> None:
    """Every call runs once for every micro-batch."""
    calls = calls_of(plan)
    require(plan.calls == () or len(plan.calls) == calls, "$.calls", f"{calls} are in the stages")
    starts, ends = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for number, (stage, group) in enumerate(zip(plan.stages, plan.groups, strict=True)):
        ((first, last),) = stage.model_chunks
        require(first < last, f"$.stages[{number}].model_chunks", "without calls")
        starts.update((first, m) for m in group.micro_batches)
        ends.update((last, m) for m in group.micro_batches)
    once = max(starts.values()) == max(ends.values()) == 1
    edges = {(at, m) for m in range(plan.micro_batches) for at in (0, calls)}
    follows = starts.keys() ^ ends.keys() == edges
    require(once and follows, "$.groups", "do not run every call once for every micro-batch")


def _verify_shardings(plan: Plan) -> None:
    for i, sharding in enumerate(plan.shardings):
        where = f"$.shardings[{i}]"
        verify_sharding(sharding, where)
        require(sharding.strategy.stages == 1, f"{where}.strategy", "a device group has no stages")
        micro = sharding.mesh.axes[0]
        whole = micro in (Axis(MICRO, 1), Axis(MICRO, plan.micro_batches))
        require(whole, f"{where}.mesh.axes[0]", "not the plan's micro-batches")
    named = [(s.function, s.strategy) for s in plan.shardings]
    require(len(set(named)) == len(named), "$.shardings", "a function twice under one strategy")


def _verify_run(plan: Plan, layers: Layers, where: str) -> None:
    known = layers.stage is not None and layers.stage < len(plan.stages)
    require(known, f"{where}.stage", "no such")
    require(layers.sharding < len(plan.shardings), f"{where}.sharding", "no such")
    require(not layers.memory.chunked, f"{where}.memory", "device groups run calls at once")
    verify_strategy(plan.strategy_of(layers), f"$.shardings[{layers.sharding}].strategy")
    devices = plan.groups[layers.stage or 0].devices
    same = plan.strategy_of(layers).devices == devices
    require(same, f"{where}.sharding", f"not a strategy of the {devices} devices of its group")
    for direction in ("forward", "backward"):
        verify_work(getattr(layers, direction), f"{where}.{direction}", devices)


def _verify_stage(plan: Plan, number: int, where: str) -> None:
    """Layers of one strategy cover the stage, and functions of all calls have its shardings."""
    mine = [x for x in plan.layers if x.stage == number]
    ((first, last),) = plan.stages[number].model_chunks
    covered = sorted(call for x in mine for call in range(x.first, x.last))
    once = len(set(covered)) == len(covered)
    inside = all(x.batch_only or first <= x.first < x.last <= last for x in mine)
    require(once and inside, where, "layers of other calls")
    require(set(range(first, last)) <= set(covered), where, "layers do not cover its calls")
    strategies = {plan.strategy_of(x) for x in mine}
    require(len(strategies) == 1, where, "layers of several strategies")
    have = {s.function for s in plan.shardings if s.strategy in strategies}
    everything = {s.function for s in plan.shardings}
    require(have == everything, "$.shardings", "not every function under every strategy")
    verify_stage_amounts(plan.stages[number], where, tuple(strategies))
