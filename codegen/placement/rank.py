"""One rank of a placement as a Python module: `step`, a flat list of operators and transfers.

A tensor has the same name on every rank. Views are recomputed on each reading rank; a value is
deleted after its last use, and a received one is waited for right before its first."""

from __future__ import annotations

import msgspec

from ...ir.lowering.linearize import PlacementUnit
from ...ir.lowering.localize import VIEWS
from ...ir.model.model import Op
from ..function import statement
from ..python_source import WIDTH, VariableNames, comment_text, string_literal, wrapped
from .actions import Action, ReceiveTensor, RunUnit, SendTensor
from .assignment import PlacedStep


class Statement(msgspec.Struct, frozen=True):
    """A statement (`text` may span lines), the values it reads and defines, and its module path."""

    text: tuple[str, ...]
    reads: tuple[int, ...] = ()
    makes: tuple[int, ...] = ()
    scope: str = ""


class RankCode:
    """Writes the module of one rank. `names` are shared by all ranks."""

    def __init__(
        self,
        assignment: PlacedStep,
        names: dict[int, str],
        actions: tuple[Action, ...],
        number: int,
    ) -> None:
        self.assignment, self.step, self.names = assignment, assignment.step, names
        self.actions, self.number = actions, number
        self.roots, self.makers = assignment.step.roots(), assignment.makers()
        self.views = {
            result: op
            for op, mark in zip(assignment.step.ops, assignment.step.origins, strict=True)
            for result in op.results
            if mark.view and result >= 0
        }
        self.available: set[int] = set()
        self.arriving: set[int] = set()
        self.statements: list[Statement] = []

    def source(self, busy: str) -> str:
        """Source of the module; `busy`: text of the rank's predicted compute time."""
        for action in self.actions:
            self.write_action(action)
        returned = self.loss()
        body = [*self.body(), f"    return {returned}"]
        batch = [v for v in self.step.batch if v in self.available]
        head = wrapped("def step(", ["run", *(self.names[v] for v in batch)], "):", 0)
        text = "\n".join([*head, *body])
        inputs = ", ".join(string_literal(self.step.batch[v]) for v in batch)
        return "\n".join(
            [
                *self.docstring(busy),
                *_imports(text),
                f"BATCH = ({inputs}{',' if len(batch) == 1 else ''})",
                "",
                "",
                text,
                "",
            ]
        )

    def docstring(self, busy: str) -> list[str]:
        kinds = [type(action) for action in self.actions]
        mine = [self.assignment.units[a.unit] for a in self.actions if isinstance(a, RunUnit)]
        state_count = sum(bool(u.state_tensor) and not u.update for u in mine)
        operator_count = sum(unit.op >= 0 for unit in mine)
        return [
            f'"""Rank {self.number} of {self.assignment.ranks}: {operator_count} operators.',
            "",
            f"It holds {state_count} tensors, sends {kinds.count(SendTensor)} and receives "
            f"{kinds.count(ReceiveTensor)} a step; {busy}.",
            '"""',
            "",
        ]

    def write_action(self, action: Action) -> None:
        if isinstance(action, SendTensor):
            self.require(action.value)
            text = f"run.send({self.names[action.value]}, {action.target})"
            self.statements.append(Statement((f"    {text}",), (action.value,)))
        elif isinstance(action, ReceiveTensor):
            type_ = self.step.types[action.value]
            items = [str(action.source), f"{list(type_.shape)}, torch.{type_.dtype}"]
            text = f"{self.names[action.value]} = run.receive({', '.join(items)})"
            self.statements.append(Statement((f"    {text}",), (), (action.value,)))
            self.available.add(action.value)
            self.arriving.add(action.value)
        elif (unit := self.assignment.units[action.unit]).op >= 0:
            self.write_operator(self.step.ops[unit.op])
        elif unit.update:
            self.write_update(unit)

    def write_update(self, unit: PlacementUnit) -> None:
        kind, value = "gradient", self.step.gradients.get(unit.state_tensor)
        if value is None:
            kind, value = "replace", self.step.updates[unit.state_tensor]
        self.require(value)
        text = f"    run.{kind}({string_literal(unit.state_tensor)}, {self.names[value]})"
        self.statements.append(Statement((text,), (value,)))

    def write_operator(self, op: Op) -> None:
        for value in dict.fromkeys(op.operands()):
            self.require(value)
        if op.target in VIEWS:  # received tensors are dense
            op = msgspec.structs.replace(op, target="aten.reshape.default")
        results = tuple(v for v in op.results if v >= 0)
        self.statements.append(
            Statement(
                tuple(statement(op, self.names, "run.device")), op.operands(), results, op.scope
            )
        )
        self.available.update(results)

    def require(self, value: int) -> None:
        """Make a value available on this rank: wait for it, or recompute it locally."""
        if value in self.arriving:
            self.arriving.remove(value)
            self.statements.append(Statement((f"    run.wait({self.names[value]})",), (value,)))
        if value in self.available:
            return
        if value in self.views:
            self.write_operator(self.views[value])
        else:
            self.fetch(value)
            self.available.add(value)

    def fetch(self, value: int) -> None:
        """Define a value that no operator computes."""
        if value in self.step.batch:
            return
        if value in self.step.state_tensors:
            text = f"run.fetch({string_literal(self.step.state_tensors[value])})"
        elif value in self.step.keys:
            text = f"run.random_key({self.step.keys[value]})"
        else:
            type_ = self.step.types[value]
            fill = self.step.fills[value]
            text = f"run.fill({list(type_.shape)}, {fill}, torch.{type_.dtype})"
        self.statements.append(Statement((f"    {self.names[value]} = {text}",), (), (value,)))

    def loss(self) -> str:
        """The returned expression: the loss on its own rank, else None."""
        value = self.step.loss
        root = self.roots[value]
        home = self.assignment.device[self.makers[root]] if root in self.makers else 0
        if home != self.number:
            return "None"
        self.require(value)
        self.statements.append(Statement((), (value,)))
        return self.names[value]

    def body(self) -> list[str]:
        """The lines, with comments where the module changes and deletions after last uses."""
        live_out = {self.step.loss, *self.step.batch}
        live_out |= {
            v
            for v in self.step.state_tensors
            if self.assignment.device[self.makers[v]] == self.number
        }
        text: list[str] = []
        scope = ""
        for line, ending in zip(
            self.statements, _last_uses(self.statements, live_out), strict=True
        ):
            if line.scope and line.scope != scope:
                scope = line.scope
                text.append(f"    # {comment_text(scope)}")
            text += line.text
            if ending:
                ended = [self.names[v] for v in ending]
                short = f"    del {', '.join(ended)}"
                text += [short] if len(short) <= WIDTH else wrapped("del (", ended, ")", 4)
        return text


def _last_uses(lines: list[Statement], live_out: set[int]) -> list[tuple[int, ...]]:
    """Per statement, the values that no later statement reads."""
    seen, endings = set(live_out), []
    for line in reversed(lines):
        values = dict.fromkeys((*line.reads, *line.makes))
        endings.append(tuple(v for v in values if v not in seen))
        seen.update(values)
    return endings[::-1]


def _imports(text: str) -> list[str]:
    spaces = [s for s in ("aten", "plait", "transformers") if f" {s}." in text]
    lines = ["import torch", ""] if spaces or "torch." in text else []
    return [*lines, *(f"{space} = torch.ops.{space}" for space in spaces)]


def value_names(assignment: PlacedStep) -> dict[int, str]:
    """One identifier per value, the same on all ranks."""
    names, step = VariableNames(), assignment.step
    wishes = step.state_tensors | step.batch
    wishes |= {v: f"key_{call}" for v, call in step.keys.items()}
    return {v: names.of(v, wishes.get(v, f"v{v}")) for v in range(len(step.types))}
