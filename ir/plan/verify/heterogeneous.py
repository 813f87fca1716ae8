"""Structural checks of a plan for unlike devices that may come from a file."""

from __future__ import annotations

from ...model.verify import require
from ..heterogeneous import DeviceGroup, HeterogeneousPlan, PipelineReplica
from .amounts import verify_stage_amounts
from .strategy import verify_strategy


def verify_heterogeneous_plan(plan: HeterogeneousPlan) -> None:
    """Raises FileError: groups are devices that exist, once each; replicas have all calls and share the
    batch."""
    require(len(plan.replicas) > 0, "$.replicas", "at least one")
    used: set[int] = set()
    ends = {_verify_replica(plan, r, f"$.replicas[{i}]", used) for i, r in enumerate(plan.replicas)}
    require(len(ends) == 1, "$.replicas", "not the same calls in all of them")
    require(plan.calls == () or {len(plan.calls)} == ends, "$.calls", "not those of the replicas")
    samples = plan.micro_batch * sum(replica.micro_batches for replica in plan.replicas)
    require(samples == plan.global_batch, "$.global_batch", f"the replicas take {samples} samples")
    require(plan.step_seconds > 0, "$.step_seconds", "not above 0")


def _verify_replica(
    plan: HeterogeneousPlan, replica: PipelineReplica, where: str, used: set[int]
) -> int:
    """The end of its calls; its ranks are added to those in use."""
    require(len(replica.device_groups) > 0, f"{where}.device_groups", "at least one")
    at = 0
    for g, group in enumerate(replica.device_groups):
        here = f"{where}.device_groups[{g}]"
        _verify_group(plan, group, here)
        ranks = set(group.ranks(plan.cluster))
        require(used.isdisjoint(ranks), here, "devices that another group has")
        used |= ranks
        first, last = group.calls
        require(first == at and last > at, f"{here}.stage.model_chunks", "stages must follow on")
        at = last
    return at


def _verify_group(plan: HeterogeneousPlan, group: DeviceGroup, where: str) -> None:
    require(group.part < len(plan.cluster.parts), f"{where}.part", "no such")
    verify_strategy(group.strategy, f"{where}.strategy")
    most = plan.cluster.parts[group.part].devices
    fits = group.first_device + group.width <= most
    require(fits, f"{where}.first_device", f"beyond the {most} devices of its part")
    require(len(group.stage.model_chunks) == 1, f"{where}.stage.model_chunks", "not one")
    verify_stage_amounts(group.stage, f"{where}.stage", (group.strategy,))
