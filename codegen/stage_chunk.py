"""A piece of the model as functions of a stage's module: which calls run, in which order, on which
values.

`forward` and `backward` run once per micro-batch. A run of equal layers is a loop, however deep the
model is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

from ..ir.layout import along
from ..ir.lowering.common_mesh import Passage
from ..ir.lowering.reshard import Between
from ..ir.model import Call, Function, Model
from ..ir.plan.plan import Layers, Memory, Plan
from ..ir.program import piece_function
from .lower import Lowered
from .python_source import WIDTH, Names, milliseconds, remark, returned, wrapped

Modules = Mapping[tuple[int, Memory], Lowered]  # by sharding and memory


class Segment(msgspec.Struct, frozen=True):
    """Calls of one piece that are written as one statement or one loop.

    `carried` pairs an argument position with the result position that feeds it in the next call.
    """

    layers: Layers
    module: str
    function: Function
    first: int
    last: int
    carried: tuple[tuple[int, int], ...]

    @property
    def loop(self) -> bool:
        return self.last - self.first > 1


class PieceCode:
    """Writes `forward` and `backward` of piece `number` of the model."""

    def __init__(
        self, plan: Plan, model: Model, between: Between, modules: Modules, number: int
    ) -> None:
        self.plan, self.model, self.between, self.modules = plan, model, between, modules
        self.chunk = number // len(plan.stages)
        self.functions = {f.name: f for f in model.functions}
        self.own = between.calls(number)
        self.segments = [
            s for layers in plan.layers if layers.first in self.own for s in self.fold(layers)
        ]
        before, after = between.crossing(number - 1) if number else (), between.sent(number)
        self.received, self.sent = (tuple(v.name for v in values) for values in (before, after))
        self.returning = {v.name for v in (*before, *after) if v.gradient}

    def named(self, direction: str) -> str:
        return piece_function(direction, self.chunk, self.plan.chunks)

    def fold(self, layers: Layers) -> list[Segment]:
        """A loop when every call feeds only the next one; otherwise one statement per call."""
        low = self.modules[layers.sharding, layers.memory]
        function = self.functions[low.sharding.function]
        carried = self.carried(layers)
        if carried is not None:
            return [Segment(layers, low.name, function, layers.first, layers.last, carried)]
        return [
            Segment(layers, low.name, function, i, i + 1, ())
            for i in range(layers.first, layers.last)
        ]

    def carried(self, layers: Layers) -> tuple[tuple[int, int], ...] | None:
        calls = self.model.calls[layers.first : layers.last]
        if len(calls) < 2:
            return ()
        pairs = []
        for position, name in enumerate(calls[1].arguments):
            if name in calls[0].results:
                pairs.append((position, calls[0].results.index(name)))
        follows = dict(pairs)
        for before, after in pairwise(calls):
            for position, name in enumerate(after.arguments):
                if position in follows:
                    if before.results[follows[position]] != name:
                        return None
                elif name != calls[0].arguments[position]:
                    return None
        inner = {name for call in calls[:-1] for name in call.results}
        fed = {name for call in calls[1:] for name in call.arguments}
        outside = {
            n
            for i, c in enumerate(self.model.calls)
            for n in c.arguments
            if not layers.first < i < layers.last
        }
        if inner & outside or inner - fed - self.unused(calls[0]) or self.model.loss in inner:
            return None
        return tuple(pairs)

    def unused(self, call: Call) -> set[str]:
        used = {n for c in self.model.calls for n in c.arguments}
        return {
            n
            for c in self.model.calls
            if c.function == call.function
            for n in c.results
            if n not in used
        }

    def forward(self, early: Sequence[str]) -> list[str]:
        """`early` are the stage's values of the batch."""
        inputs = [*early, *(n for n in self.received if n not in early)]
        names = Names({"functions"})
        where: dict[str, str] = {n: names.of(n, n) for n in inputs}
        lines = wrapped(
            f"def {self.named('forward')}(", ["run", *(where[n] for n in inputs)], "):", 0
        )
        gone = {"_"}
        for segment in self.segments:
            held = set(where.values())
            lines += self.forward_segment(segment, where, names)
            needed = {where[n] for n in where if n in early or self.used_later(n, segment)}
            if segment is not self.segments[-1]:
                lines += _delete(held - needed, gone)
        return lines + returned([where[n] for n in self.sent])

    def forward_segment(self, segment: Segment, where: dict[str, str], names: Names) -> list[str]:
        calls = self.model.calls
        head, last = calls[segment.first], calls[segment.last - 1]
        lines = [f"    # {self.remark(segment)}"]
        feeds = {result: position for position, result in segment.carried}
        arguments = []
        for position, name in enumerate(head.arguments):
            way = self.between.forward(segment.first, position)
            arguments.append(names.fresh(name) if way.steps else where[name])
            lines += self.moved(way, where[name], arguments[position])
        carried: dict[int, str] = {}  # the loop's variable of every argument that comes round
        for position, result in segment.carried:
            name = head.arguments[position]
            carried[position] = arguments[position]
            if arguments[position] == where[name] and self.used_later(name, segment):
                carried[position] = names.fresh(last.results[result])
                lines.append(f"    {carried[position]} = {where[name]}")
        arguments = [carried.get(p, argument) for p, argument in enumerate(arguments)]
        for number, name in enumerate(last.results):
            if number in feeds and segment.loop:
                where[name] = carried[feeds[number]]
            else:
                where[name] = names.fresh(name) if self.used_later(name, segment) else "_"
        results = [where[name] for name in last.results]
        return lines + self.statement(segment, "forward", results, arguments, reverse=False)

    def calls(self, segment: Segment) -> tuple[Call, ...]:
        return self.model.calls[segment.first : segment.last]

    def used_later(self, name: str, segment: Segment) -> bool:
        later = {n for i in self.own if i >= segment.last for n in self.model.calls[i].arguments}
        return name in later or name in self.sent

    def statement(
        self, segment: Segment, verb: str, results: list[str], items: list[str], *, reverse: bool
    ) -> list[str]:
        number = "call" if segment.loop else str(segment.first)
        calls = f"range({segment.first}, {segment.last})"
        lines = []
        if segment.loop:
            lines.append(f"    for call in {f'reversed({calls})' if reverse else calls}:")
        left = f"{', '.join(results)}{',' if len(results) == 1 else ''} = " if results else ""
        return lines + wrapped(
            f"{left}run.{verb}(",
            [f"functions.{segment.module}", number, *items],
            ")",
            8 if segment.loop else 4,
        )

    def moved(self, way: Passage, source: str, target: str) -> list[str]:
        """A passage as statements from one variable to another."""
        grid, lines = self.between.grid, []
        for step in way.steps:
            items = [source, f'"{grid.axes[step.axis].name}"']
            for state, layout in ((step.source, step.before), (step.target, step.after)):
                if isinstance(state, tuple):
                    items += map(str, along(way.factors, layout, grid, state))
            lines.append(f"    {target} = run.grid.{step.kind}({', '.join(items)})")
            source = target
        return lines

    def remark(self, segment: Segment) -> str:
        layers, calls = segment.layers, self.model.calls
        path = remark(calls[segment.first].path or segment.module)
        if segment.loop:
            path += f" to {remark(calls[segment.last - 1].path)}"
        return (
            f"{path}: {self.plan.strategy_of(layers)}, {layers.memory}; forward "
            f"{milliseconds(layers.forward_seconds)}, backward "
            f"{milliseconds(layers.backward_seconds)} each"
        )[:94]

    def backward(self) -> list[str]:
        names = Names({"functions"})
        tangent: dict[str, str] = {}
        for name in self.sent:
            if name in self.returning:
                tangent[name] = names.fresh(f"d_{name}")
        lines = wrapped(f"def {self.named('backward')}(", ["run", *tangent.values()], "):", 0)
        gone = {"_", "None"}
        for segment in reversed(self.segments):
            if segment.function.differentiable:
                lines += self.backward_segment(segment, tangent, names)
                made = {n for c in self.calls(segment) for n in c.results}
                needed = {tangent[n] for n in tangent if n not in made}
                if segment is not self.segments[0]:
                    lines += _delete({tangent[n] for n in made & tangent.keys()} - needed, gone)
        given = [n for n in self.received if n in self.returning]
        return lines + returned([tangent.get(n, "None") for n in given])

    def backward_segment(
        self, segment: Segment, tangent: dict[str, str], names: Names
    ) -> list[str]:
        head, last = self.model.calls[segment.first], self.model.calls[segment.last - 1]
        feeds = dict(segment.carried)
        items = [
            tangent.get(name, "None")
            for name, output in zip(last.results, segment.function.outputs, strict=True)
            if output.tangent is not None
        ]
        lines, results, sums = [], [], []
        after: list[tuple[int, str]] = []  # what comes out of the loop, or has a way to go
        for position, item in enumerate(segment.function.activations()):
            name = head.arguments[position]
            if item.gradient is None:
                results.append("_")
                continue
            if segment.loop and position in feeds:
                mine = tangent.get(last.results[feeds[position]]) or names.fresh(f"d_{name}")
                results.append(mine)
                after.append((position, mine))
                continue
            if self.between.backward(segment.first, position).steps:
                mine = names.fresh(f"d_{name}_part")
                results.append(mine)
                if segment.loop:
                    after.append((position, names.fresh(f"d_{name}_sum")))
                    lines.append(f"    {after[-1][1]} = None")
                    sums.append(f"{after[-1][1]} = run.add({after[-1][1]}, {mine})")
                else:
                    after.append((position, mine))
                continue
            if name in tangent or segment.loop or head.arguments.count(name) > 1:
                part = names.fresh(f"d_{name}_part")
                if name not in tangent:
                    tangent[name] = names.fresh(f"d_{name}")
                    lines.append(f"    {tangent[name]} = None")
                results.append(part)
                sums.append(f"{tangent[name]} = run.add({tangent[name]}, {part})")
            else:
                tangent[name] = names.fresh(f"d_{name}")
                results.append(tangent[name])
        lines += self.statement(segment, "backward", results, items, reverse=True)
        lines += [f"{'        ' if segment.loop else '    '}{line}" for line in sums]
        for position, mine in after:
            name = head.arguments[position]
            way = self.between.backward(segment.first, position)
            lines += self.moved(way, mine, mine)
            if name in tangent:
                lines.append(f"    {tangent[name]} = run.add({tangent[name]}, {mine})")
            else:
                tangent[name] = mine
        return lines


def _delete(variables: set[str], gone: set[str]) -> list[str]:
    """The statement that lets go of variables, if there are any that have not `gone` yet."""
    ending = sorted(variables - gone)
    gone.update(ending)
    line = f"    del {', '.join(ending)}"
    if len(line) > WIDTH:
        return wrapped("del (", ending, ")", 4)
    return [line] if ending else []
