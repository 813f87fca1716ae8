"""One pipeline stage as a Python module: its batch-only computation and its model chunks.

`batch_only` runs once per step, `forward` and `backward` of each model chunk once per micro-batch.
"""

from __future__ import annotations

from ..ir.lowering.plan_layouts import PlanLayouts
from ..ir.model.model import Model
from ..ir.plan.plan import Plan
from ..ir.plan.schedules.chunk_map import ChunkPlace
from ..ir.text.units import micro_batches
from .lower import LoweredFunction
from .python_source import (
    VariableNames,
    comment_text,
    milliseconds,
    return_statement,
    string_literal,
    tuple_source,
    wrapped,
)
from .stage_chunk import ModelChunkCode, Modules


class StageCode:
    """Writes the module of one stage."""

    def __init__(
        self,
        plan: Plan,
        model: Model,
        layouts: PlanLayouts,
        lowered: tuple[LoweredFunction, ...],
        number: int,
        prefetches: bool = True,
    ) -> None:
        self.plan, self.model, self.layouts, self.number = plan, model, layouts, number
        self.stage = plan.stages[number]
        self.modules: Modules = {(low.number, low.memory): low for low in lowered}
        self.model_chunks = [
            ModelChunkCode(
                plan, model, layouts, self.modules, ChunkPlace(number, chunk), prefetches
            )
            for chunk in range(plan.chunks_per_stage)
        ]
        self.batch_only_values, self.batch_only_calls = (
            layouts.batch_only_values(number),
            layouts.hoisted_calls(number),
        )
        self.names = VariableNames({low.name for low in lowered})

    def batch(self) -> tuple[str, ...]:
        """Names of the batch tensors that `batch_only` takes."""
        used = set(self.batch_only_values)
        used.update(n for i in self.batch_only_calls for n in self.model.calls[i].arguments)
        return tuple(i.name for i in self.model.inputs if i.name in used)

    def source(self) -> str:
        lines = self.docstring()
        lines += [
            "from . import functions",
            "",
            f"BATCH = {tuple_source(list(map(string_literal, self.batch())))}",
        ]
        lines += [f"MICRO_BATCH_DIMS = {self.micro_batch_splits()!r}", ""]
        lines += ["", *self.batch_only_function()]
        for chunk in self.model_chunks:
            lines += ["", "", *chunk.forward(self.batch_only_values)]
            for backward in chunk.backward_functions():
                lines += ["", "", *backward]
        return "\n".join([*lines, ""])

    def docstring(self) -> list[str]:
        stage, plan = self.stage, self.plan
        return [
            f'"""Stage {self.number} of {len(plan.stages)}: {plan.strategy_text}, '
            f"{micro_batches(plan.micro_batches)}, {comment_text(plan.schedule)}.",
            "",
            f"Predicted per micro-batch: forward {milliseconds(stage.forward_seconds)}, backward "
            f"{milliseconds(stage.backward_seconds)}; per step: synchronisation",
            f"{milliseconds(stage.sync_seconds)}; peak {stage.peak_bytes / 2**30:.2f} of "
            f"{plan.memory_limit_bytes / 2**30:.2f} GiB.",
            '"""',
            "",
        ]

    def micro_batch_splits(self) -> tuple[tuple[int, int] | None, ...]:
        """Micro-batch slicing of each batch-only value: (dim, outer elements), None: not sliced."""
        return tuple(self.layouts.micro_batch_slice(name) for name in self.batch_only_values)

    def module_of(self, call: int) -> LoweredFunction:
        layers = self.plan.layers_of(call)
        return self.modules[layers.sharding, layers.memory]

    def variable(self, name: str) -> str:
        return self.names.of(name, name)

    def batch_only_function(self) -> list[str]:
        lines = wrapped("def batch_only(", ["run", *map(self.variable, self.batch())], "):", 0)
        lines.append('    """Once per step: values that depend on the batch alone."""')
        used = set(self.batch_only_values)
        used.update(n for i in self.batch_only_calls for n in self.model.calls[i].arguments)
        for i in self.batch_only_calls:
            call = self.model.calls[i]
            module = self.module_of(i).name
            results = ", ".join(self.variable(n) if n in used else "_" for n in call.results)
            items = [f"functions.{module}", str(i), *map(self.variable, call.arguments)]
            lines += wrapped(
                f"{results}, = run.batch_only("
                if len(call.results) == 1
                else f"{results} = run.batch_only(",
                items,
                ")",
                4,
            )
        return lines + return_statement([self.variable(n) for n in self.batch_only_values])
