"""How a program shows itself: a line, a text, and the names that completion offers."""

from __future__ import annotations

from typing import Any

from torch import device

from ...ir.plan.program import ProgramTable

# What a training script uses; all else is there for the program itself.
PUBLIC = frozenset(
    "clip_grad_norm device eval finish_saving forward_backward full_gradients load load_checkpoint "
    "load_into loss_scale meter metrics nonfinite on_step open optimizer optimizer_step plan "
    "request_stop resume samples save seed state_dict step steps stop_requested zero_grad".split()
)


class ProgramText:
    """Texts of a program on this rank."""

    table: ProgramTable
    device: device
    steps: int
    meter: Any
    groups: Any
    store: Any

    def __repr__(self) -> str:
        mesh, rank = self.table.mesh, self.groups.pool.rank
        names = self.store.transports.backends()
        backends = f"compressed by {', '.join(names)} kernels, " if names else ""
        return (
            f"<plait.Program {self.table.model}: {mesh}, rank {rank} of {mesh.size} on {self.device}, "
            f"{backends}{self.steps} step{'' if self.steps == 1 else 's'} done>"
        )

    def __str__(self) -> str:
        plan = self.meter.plan
        return repr(self) if plan is None else f"{self!r}\n{plan}"

    def __dir__(self) -> list[str]:
        return sorted(PUBLIC)
