"""Plans for clusters of several kinds of devices, as text and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...ir.files.json_files import digest
from ...ir.plan.heterogeneous import DeviceGroup, HeterogeneousPlan
from ...ir.text.summary import one_line
from ...ir.text.units import gib, seconds


def heterogeneous_text(plan: HeterogeneousPlan) -> Iterator[str]:
    """A plan in a screenful: its replicas, stage by stage, and the step of each part alone."""
    yield (
        f"plan for {one_line(plan.model)} on {one_line(str(plan.cluster))}   "
        f"{seconds(plan.step_seconds)}/step, gap {plan.gap:.2%}"
    )
    count = sum(replica.micro_batches for replica in plan.replicas)
    yield f"  global batch {plan.global_batch}, {count} micro-batches of {plan.micro_batch}, 1f1b"
    for number, replica in enumerate(plan.replicas):
        yield f"  line {number}: {replica.micro_batches} micro-batches in {seconds(replica.seconds)}"
        for group in replica.device_groups:
            yield "    " + group_text(plan, group)
    yield f"  once per step {seconds(plan.sync_seconds)}"
    names = [f"part {n} alone" for n in range(len(plan.cluster.parts))] + ["all as the slowest"]
    steps = (
        f"{name} {'does not fit' if s is None else seconds(s)}"
        for name, s in zip(names, plan.single_part_seconds, strict=True)
    )
    yield "  against " + ", ".join(steps)


def group_text(plan: HeterogeneousPlan, group: DeviceGroup) -> str:
    """A stage of a replica in a line: its ranks, what they do, and their peak memory."""
    first, last = group.calls
    ranks, stage = group.ranks(plan.cluster), group.stage
    device = plan.cluster.parts[group.part].device
    span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}-{ranks[-1]}"
    return (
        f"{span:<12} {device.kind:<12} {group.strategy!s:<14} {group.memory:<10} calls {first}-"
        f"{last - 1}: forward {seconds(stage.forward_seconds)}, backward "
        f"{seconds(stage.backward_seconds)}, {gib(stage.peak_bytes)} of {gib(plan.memory_limit(group))}"
    )


def heterogeneous_json(plan: HeterogeneousPlan, seconds_taken: float) -> dict[str, Any]:
    """A plan as data, under the names of `plait plan --json`."""
    return {
        "status": plan.status,
        "gap": plan.gap,
        "step_time_s": plan.step_seconds,
        "tokens_per_s": plan.tokens_per_second,
        "global_batch": plan.global_batch,
        "micro_batch": plan.micro_batch,
        "sync_s": plan.sync_seconds,
        "alone_s": list(plan.single_part_seconds),
        "lines": [
            {
                "micro_batches": replica.micro_batches,
                "seconds": replica.seconds,
                "crews": [
                    {
                        "ranks": list(group.ranks(plan.cluster)),
                        "word": str(group.strategy),
                        "memory": str(group.memory),
                        "calls": [group.calls[0], group.calls[1] - 1],
                        "peak": group.stage.peak_bytes,
                        "budget": plan.memory_limit(group),
                        "terms": dict(group.stage.memory_terms),
                    }
                    for group in replica.device_groups
                ],
            }
            for replica in plan.replicas
        ],
        "plan_time_s": {"total": seconds_taken},
        "digest": digest(plan),
    }
