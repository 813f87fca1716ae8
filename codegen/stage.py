"""One pipeline stage as a Python module: what it makes of the batch, and its pieces of the model.

`data` runs once per step, each piece's `forward` and `backward` once per micro-batch.
"""

from __future__ import annotations

from ..ir.lowering.reshard import Between
from ..ir.model import Model
from ..ir.plan.plan import Plan
from .lower import Lowered
from .python_source import Names, milliseconds, quoted, remark, returned, tupled, wrapped
from .stage_chunk import PieceCode


class StageCode:
    """Writes the module of one stage."""

    def __init__(
        self, plan: Plan, model: Model, between: Between, lowered: tuple[Lowered, ...], number: int
    ) -> None:
        self.plan, self.model, self.between, self.number = plan, model, between, number
        self.stage = plan.stages[number]
        self.modules = {(low.number, low.variant): low for low in lowered}
        self.pieces = [
            PieceCode(plan, model, between, self.modules, chunk * len(plan.stages) + number)
            for chunk in range(plan.chunks)
        ]
        self.early, self.ahead = between.early(number), between.ahead(number)
        self.names = Names({low.name for low in lowered})

    def batch(self) -> tuple[str, ...]:
        """Tensors of the batch that `data` takes."""
        used = set(self.early)
        used.update(n for i in self.ahead for n in self.model.calls[i].arguments)
        return tuple(i.name for i in self.model.inputs if i.name in used)

    def source(self) -> str:
        lines = self.docstring()
        lines += [
            "from . import functions",
            "",
            f"BATCH = {tupled(list(map(quoted, self.batch())))}",
        ]
        lines += [f"CUT = {self.cuts()!r}", ""]
        lines += ["", *self.data()]
        for piece in self.pieces:
            lines += ["", "", *piece.forward(self.early), "", "", *piece.backward()]
        return "\n".join([*lines, ""])

    def docstring(self) -> list[str]:
        stage, plan = self.stage, self.plan
        return [
            f'"""Stage {self.number} of {len(plan.stages)}: {plan.word}, {plan.micro_batches} '
            f"micro-batches, {remark(plan.schedule)}.",
            "",
            f"Predicted per micro-batch: forward {milliseconds(stage.forward_seconds)}, backward "
            f"{milliseconds(stage.backward_seconds)}; per step: synchronisation",
            f"{milliseconds(stage.sync_seconds)}; peak {stage.peak_bytes / 2**30:.2f} of "
            f"{plan.budget_bytes / 2**30:.2f} GiB.",
            '"""',
            "",
        ]

    def cuts(self) -> tuple[tuple[int, int] | None, ...]:
        """Where each early value is cut into micro-batches: (dim, elements outside), or whole."""
        return tuple(self.between.micro(name) for name in self.early)

    def module_of(self, call: int) -> Lowered:
        layers = self.plan.layers_of(call)
        return self.modules[layers.sharding, layers.memory]

    def var(self, name: str) -> str:
        return self.names.of(name, name)

    def data(self) -> list[str]:
        lines = wrapped("def data(", ["run", *map(self.var, self.batch())], "):", 0)
        lines.append('    """Once per step: what depends on the batch alone."""')
        used = set(self.early)
        used.update(n for i in self.ahead for n in self.model.calls[i].arguments)
        for i in self.ahead:
            call = self.model.calls[i]
            module = self.module_of(i).name
            results = ", ".join(self.var(n) if n in used else "_" for n in call.results)
            items = [f"functions.{module}", str(i), *map(self.var, call.arguments)]
            lines += wrapped(
                f"{results}, = run.data(" if len(call.results) == 1 else f"{results} = run.data(",
                items,
                ")",
                4,
            )
        return lines + returned([self.var(n) for n in self.early])
