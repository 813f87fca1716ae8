"""One rank of a placement as a Python module: `step`, a flat list of operators and transfers.

A tensor has the same name on every rank. Views are taken wherever they are read; a value is deleted
after its last use, and what was received is waited for right before its first.
"""

from __future__ import annotations

import msgspec

from ...ir.lowering.linearize import Unit
from ...ir.lowering.localize import VIEWS
from ...ir.model import Op
from ..function import statement
from ..python_source import WIDTH, Names, quoted, remark, wrapped
from .actions import Action, Receive, Run, Send
from .assignment import Assignment


class Line(msgspec.Struct, frozen=True):
    """A statement (`text` may be wrapped), the values it reads and makes, and the module it is of."""

    text: tuple[str, ...]
    reads: tuple[int, ...] = ()
    makes: tuple[int, ...] = ()
    scope: str = ""


class RankCode:
    """Writes the module of one rank. `names` are shared by all ranks."""

    def __init__(
        self, made: Assignment, names: dict[int, str], todo: tuple[Action, ...], number: int
    ) -> None:
        self.made, self.step, self.names = made, made.step, names
        self.todo, self.number = todo, number
        self.roots, self.makers = made.step.roots(), made.makers()
        self.views = {
            result: op
            for op, mark in zip(made.step.ops, made.step.marks, strict=True)
            for result in op.results
            if mark.view and result >= 0
        }
        self.here: set[int] = set()
        self.arriving: set[int] = set()
        self.lines: list[Line] = []

    def source(self, busy: str) -> str:
        """The module; `busy` says in words how long the rank is predicted to work."""
        for action in self.todo:
            self.act(action)
        returned = self.loss()
        body = [*self.body(), f"    return {returned}"]
        batch = [v for v in self.step.batch if v in self.here]
        head = wrapped("def step(", ["run", *(self.names[v] for v in batch)], "):", 0)
        text = "\n".join([*head, *body])
        inputs = ", ".join(quoted(self.step.batch[v]) for v in batch)
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
        kinds = [type(action) for action in self.todo]
        mine = [self.made.units[a.unit] for a in self.todo if isinstance(a, Run)]
        held = sum(bool(u.held) and not u.update for u in mine)
        return [
            f'"""Rank {self.number} of {self.made.ranks}: {sum(u.op >= 0 for u in mine)} operators.',
            "",
            f"It holds {held} tensors, sends {kinds.count(Send)} and receives "
            f"{kinds.count(Receive)} a step; {busy}.",
            '"""',
            "",
        ]

    def act(self, action: Action) -> None:
        if isinstance(action, Send):
            self.need(action.value)
            text = f"run.send({self.names[action.value]}, {action.target})"
            self.lines.append(Line((f"    {text}",), (action.value,)))
        elif isinstance(action, Receive):
            type_ = self.step.types[action.value]
            items = [str(action.source), f"{list(type_.shape)}, torch.{type_.dtype}"]
            text = f"{self.names[action.value]} = run.receive({', '.join(items)})"
            self.lines.append(Line((f"    {text}",), (), (action.value,)))
            self.here.add(action.value)
            self.arriving.add(action.value)
        elif (unit := self.made.units[action.unit]).op >= 0:
            self.operator(self.step.ops[unit.op])
        elif unit.update:
            self.update(unit)

    def update(self, unit: Unit) -> None:
        kind, value = "gradient", self.step.gradients.get(unit.held)
        if value is None:
            kind, value = "replace", self.step.updates[unit.held]
        self.need(value)
        text = f"    run.{kind}({quoted(unit.held)}, {self.names[value]})"
        self.lines.append(Line((text,), (value,)))

    def operator(self, op: Op) -> None:
        for value in dict.fromkeys(op.operands()):
            self.need(value)
        if op.target in VIEWS:  # what arrives is dense
            op = msgspec.structs.replace(op, target="aten.reshape.default")
        results = tuple(v for v in op.results if v >= 0)
        self.lines.append(Line(tuple(statement(op, self.names)), op.operands(), results, op.scope))
        self.here.update(results)

    def need(self, value: int) -> None:
        """Make a value ready on this rank: wait for it, or make it where it is at hand everywhere."""
        if value in self.arriving:
            self.arriving.remove(value)
            self.lines.append(Line((f"    run.wait({self.names[value]})",), (value,)))
        if value in self.here:
            return
        if value in self.views:
            self.operator(self.views[value])
        else:
            self.bring(value)
            self.here.add(value)

    def bring(self, value: int) -> None:
        """What no operator makes."""
        if value in self.step.batch:
            return
        if value in self.step.held:
            text = f"run.fetch({quoted(self.step.held[value])})"
        elif value in self.step.keys:
            text = f"run.random_key({self.step.keys[value]})"
        else:
            type_ = self.step.types[value]
            fill = self.step.fills[value]
            text = f"run.fill({list(type_.shape)}, {fill}, torch.{type_.dtype})"
        self.lines.append(Line((f"    {self.names[value]} = {text}",), (), (value,)))

    def loss(self) -> str:
        """What the module returns: the loss where it is made, else nothing."""
        value = self.step.loss
        root = self.roots[value]
        home = self.made.device[self.makers[root]] if root in self.makers else 0
        if home != self.number:
            return "None"
        self.need(value)
        self.lines.append(Line((), (value,)))
        return self.names[value]

    def body(self) -> list[str]:
        """The lines, with comments where the module changes and deletions after last uses."""
        kept = {self.step.loss, *self.step.batch}
        kept |= {v for v in self.step.held if self.made.device[self.makers[v]] == self.number}
        text: list[str] = []
        scope = ""
        for line, ending in zip(self.lines, _endings(self.lines, kept), strict=True):
            if line.scope and line.scope != scope:
                scope = line.scope
                text.append(f"    # {remark(scope)}")
            text += line.text
            if ending:
                ended = [self.names[v] for v in ending]
                short = f"    del {', '.join(ended)}"
                text += [short] if len(short) <= WIDTH else wrapped("del (", ended, ")", 4)
        return text


def _endings(lines: list[Line], kept: set[int]) -> list[tuple[int, ...]]:
    """Per line, the values that no later line reads."""
    seen, found = set(kept), []
    for line in reversed(lines):
        values = dict.fromkeys((*line.reads, *line.makes))
        found.append(tuple(v for v in values if v not in seen))
        seen.update(values)
    return found[::-1]


def _imports(text: str) -> list[str]:
    spaces = [s for s in ("aten", "plait", "transformers") if f" {s}." in text]
    lines = ["import torch", ""] if spaces or "torch." in text else []
    return [*lines, *(f"{space} = torch.ops.{space}" for space in spaces)]


def value_names(made: Assignment) -> dict[int, str]:
    """One identifier per value, the same on all ranks."""
    names, step = Names(), made.step
    wishes = step.held | step.batch
    wishes |= {v: f"key_{call}" for v, call in step.keys.items()}
    return {v: names.of(v, wishes.get(v, f"v{v}")) for v in range(len(step.types))}
