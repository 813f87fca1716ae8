"""Independent check of plans for heterogeneous clusters; it shares no code with their search."""

from __future__ import annotations

from ...ir.model.verify import require
from ...ir.plan.heterogeneous import HeterogeneousPlan


def check(plan: HeterogeneousPlan) -> None:
    """Check that every call runs once per replica and no device is used twice or over its memory.

    Raises FileError naming the JSON path of the first violation.
    """
    require(plan.micro_batch >= 1, "$.micro_batch", "at least one sample")
    require(bool(plan.replicas), "$.replicas", "none")
    ran = sum(replica.micro_batches for replica in plan.replicas) * plan.micro_batch
    require(
        ran == plan.global_batch,
        "$.replicas",
        f"{ran} samples run, the batch is {plan.global_batch}",
    )
    used: set[int] = set()
    last = plan.replicas[0].device_groups[-1].calls[1]
    require(len(plan.calls) in (0, last), "$.calls", "not the calls of the lines")
    for i, replica in enumerate(plan.replicas):
        at = 0
        for j, group in enumerate(replica.device_groups):
            where = f"$.replicas[{i}].device_groups[{j}]"
            require(0 <= group.part < len(plan.cluster.parts), f"{where}.part", "no such part")
            part = plan.cluster.parts[group.part]
            inside = group.first_device >= 0 and group.first_device + group.width <= part.devices
            require(inside, f"{where}.first_device", "beyond its part")
            ranks = set(group.ranks(plan.cluster))
            require(not used & ranks, where, "a device is in two groups")
            used |= ranks
            whole = len(group.stage.model_chunks) == 1 and group.calls[0] == at < group.calls[1]
            require(whole, f"{where}.stage", "does not follow")
            at = group.calls[1]
            over = sum(amount for _, amount in group.stage.memory_terms) > plan.memory_limit(group)
            require(not over, f"{where}.stage.memory", "over the budget")
        require(at == last, f"$.replicas[{i}]", "does not run every call")
