"""A plan as Python users hold it: print it, save it, look at it, ask for its reasons."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...ir.errors import UsageError
from ...ir.model.model import Model
from ...ir.plan import plan as ir

LARGEST_FRAME = 2_000_000  # characters of a page inside a notebook


class Plan(ir.Plan, frozen=True):
    """A plan: who does what, and what it is predicted to cost. `print(plan)` gives its text form.

    Made by `plait.plan` and `plait.load_plan`; its fields are those of its file.
    """

    @property
    def step_seconds(self) -> float:
        """Predicted seconds of a step."""
        return self.prediction.step_seconds

    @property
    def strategy(self) -> str:
        """The strategies in one line: `pp=2,zero1=32`."""
        return self.strategy_text

    def why_not(self, strategy: str, model: Model | None = None) -> str:
        """Another strategy beside this plan: seconds and bytes by term, and whether it would fit.

        `model` is the one that was planned; without it the file that the plan names is read. Raises
        UsageError where there is neither, or the model cannot be split so.
        """
        from .comparison import comparison, plan_with_strategy
        from .plan_model import model_of_plan

        traced = model_of_plan(self, None, None, None) if model is None else model
        return comparison(self, plan_with_strategy(self, traced, strategy))

    def __repr__(self) -> str:
        from ...ir.text.summary import fullest_stage
        from ...ir.text.units import gib, seconds

        fullest = fullest_stage(self)
        return (
            f"<plait.Plan {self.model} on {self.cluster.name}: {self.strategy}, "
            f"{seconds(self.step_seconds)}/step, {gib(self.stages[fullest].peak_bytes)} of "
            f"{gib(self.memory_limit_of(fullest))}>"
        )

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]

    def _repr_html_(self) -> str:
        """The page of the plan in a notebook, in a frame of its own; where it is large, its summary."""
        from html import escape

        from ..view import render, report_of_plan

        page = render(report_of_plan(self))
        if len(page) > LARGEST_FRAME:
            return f"<pre>{escape(str(self))}</pre>"
        frame = 'sandbox="allow-scripts" style="width:100%;height:900px;border:0"'
        return f'<iframe {frame} srcdoc="{escape(page)}"></iframe>'

    def __str__(self) -> str:
        from ...ir.text.summary import plan_summary

        return plan_summary(self)

    def save(self, path: str | Path) -> None:
        """Write the plan's file, whole or not at all; raises FileError."""
        from ..formats import files

        files.write(Path(path), self, "plait/plan")

    def view(self, path: str | Path, model: Model | None = None) -> None:
        """Write one HTML page; with the `model` that was planned, functions show their operators."""
        from ..formats import files
        from ..view import render, report_of_plan

        files.write_text(Path(path), render(report_of_plan(self, model)))

    def explain(self, where: str | None = None, *, memory: bool = False) -> str:
        """The terms of the plan as text: value, formula, and where its numbers come from.

        `where` names calls, functions or stages (`"block.3"`, `"block*"`, `"stage0"`); `memory` asks
        for bytes instead of seconds. Raises UsageError when nothing matches.
        """
        from .explanation import explain

        return explain(self, where, memory=memory)


def with_methods(plan: ir.Plan) -> Plan:
    """The plan as the class that Python users hold."""
    return Plan(**msgspec.structs.asdict(plan))


def load_plan(path: str | Path) -> Plan:
    """Read a plan; raises FileError naming the file and the JSON path."""
    from ..formats.files import read

    return with_methods(read(Path(path), ir.Plan, "plait/plan"))


def load_uniform_plan(path: str | Path, what: str) -> Plan:
    """Read a plan for `what`, which knows equal stages alone.

    Raises FileError as `load_plan` does, UsageError for a plan whose stages are device groups."""
    plan = load_plan(path)
    if plan.groups:
        raise UsageError(
            f"{path}: its {len(plan.groups)} stages are device groups, which {what} cannot take; plan "
            "for devices of one kind"
        )
    return plan
