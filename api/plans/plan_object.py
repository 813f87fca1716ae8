"""A plan as Python users hold it: print it, save it, look at it, ask for its reasons."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...ir.model.model import Model
from ...ir.plan import plan as ir


class Plan(ir.Plan, frozen=True):
    """A plan: who does what, and what it is predicted to cost. `print(plan)` gives its text form.

    Made by `plait.plan` and `plait.load_plan`; its fields are those of its file.
    """

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
