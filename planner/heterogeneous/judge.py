"""A judge of fleet plans that shares no code with their search: all runs once, nothing is over."""

from __future__ import annotations

from ...ir.devices.heterogeneous import FleetPlan
from ...ir.verify import require


def check(plan: FleetPlan) -> None:
    """Raises FileError naming the JSON path of the first thing that does not hold."""
    require(plan.micro_batch >= 1, "$.micro_batch", "at least one sample")
    require(bool(plan.lines), "$.lines", "none")
    ran = sum(line.micro_batches for line in plan.lines) * plan.micro_batch
    require(
        ran == plan.global_batch, "$.lines", f"{ran} samples run, the batch is {plan.global_batch}"
    )
    used: set[int] = set()
    last = plan.lines[0].crews[-1].calls[1]
    require(len(plan.calls) in (0, last), "$.calls", "not the calls of the lines")
    for i, line in enumerate(plan.lines):
        at = 0
        for j, crew in enumerate(line.crews):
            where = f"$.lines[{i}].crews[{j}]"
            require(0 <= crew.part < len(plan.fleet.parts), f"{where}.part", "no such part")
            part = plan.fleet.parts[crew.part]
            inside = crew.first >= 0 and crew.first + crew.width <= part.devices
            require(inside, f"{where}.first", "beyond its part")
            ranks = set(crew.ranks(plan.fleet))
            require(not used & ranks, where, "a device is in two crews")
            used |= ranks
            whole = len(crew.stage.pieces) == 1 and crew.calls[0] == at < crew.calls[1]
            require(whole, f"{where}.stage", "does not follow")
            at = crew.calls[1]
            over = sum(amount for _, amount in crew.stage.memory) > plan.budget(crew)
            require(not over, f"{where}.stage.memory", "over the budget")
        require(at == last, f"$.lines[{i}]", "does not run every call")
