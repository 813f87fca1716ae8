"""One pipeline stage as a Python module: which calls run, in which order, on which values.

`data` runs once per step, `forward` and `backward` once per micro-batch. A run of equal layers is a
loop, however deep the model is.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from ..ir.model import Call, Function, Model
from ..ir.plan import Layers, Plan, Stage
from .between import Between
from .lower import Lowered
from .text import Names, milliseconds, quoted, remark, wrapped


class Segment(msgspec.Struct, frozen=True):
    """Calls of one stage that are written as one statement or one loop.

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


class StageCode:
    """Writes the module of one stage."""

    def __init__(
        self,
        plan: Plan,
        model: Model,
        between: Between,
        lowered: tuple[Lowered, ...],
        number: int,
    ) -> None:
        self.plan, self.model, self.between, self.number = plan, model, between, number
        self.stage: Stage = plan.stages[number]
        self.functions = {f.name: f for f in model.functions}
        self.modules = {(low.number, low.variant): low for low in lowered}
        self.once = model.once()
        self.segments = [
            s
            for layers in plan.layers
            if layers.first not in self.once
            and self.stage.first <= layers.first < self.stage.last
            for s in self.fold(layers)
        ]
        used = {name for i in self.own() for name in self.model.calls[i].arguments}
        self.received = crossing(plan, model, number - 1) if number else ()
        self.sent = crossing(plan, model, number) if number + 1 < len(plan.stages) else (model.loss,)
        early = [i.name for i in model.inputs]
        early += [name for i in sorted(self.once) for name in model.calls[i].results]
        self.early = tuple(name for name in early if name in used | set(self.sent))
        self.names = Names({low.name for low in lowered})

    def own(self) -> list[int]:
        return [i for i in range(self.stage.first, self.stage.last) if i not in self.once]

    def wanted_once(self) -> list[int]:
        """Calls of the batch that this stage needs, with what they need."""
        live, found = set(self.early), []
        for i in sorted(self.once, reverse=True):
            call = self.model.calls[i]
            if live.intersection(call.results):
                live.update(call.arguments)
                found.append(i)
        return found[::-1]

    def batch(self) -> tuple[str, ...]:
        """Tensors of the batch that `data` takes."""
        used = set(self.early)
        used.update(n for i in self.wanted_once() for n in self.model.calls[i].arguments)
        return tuple(i.name for i in self.model.inputs if i.name in used)

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
        outside = {n for i, c in enumerate(self.model.calls) for n in c.arguments
                   if not layers.first < i < layers.last}  # fmt: skip
        if inner & outside or inner - fed - self.unused(calls[0]) or self.model.loss in inner:
            return None
        return tuple(pairs)

    def unused(self, call: Call) -> set[str]:
        used = {n for c in self.model.calls for n in c.arguments}
        return {n for c in self.model.calls if c.function == call.function
                for n in c.results if n not in used}  # fmt: skip

    def source(self) -> str:
        lines = self.docstring()
        lines += ["from . import functions", "", f"BATCH = {_strings(self.batch())}"]
        lines += [f"CUT = {self.cuts()!r}", ""]
        lines += ["", *self.data(), "", "", *self.forward(), "", "", *self.backward(), ""]
        return "\n".join(lines)

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
        used.update(n for i in self.wanted_once() for n in self.model.calls[i].arguments)
        for i in self.wanted_once():
            call = self.model.calls[i]
            module = self.module_of(i).name
            results = ", ".join(self.var(n) if n in used else "_" for n in call.results)
            items = [f"functions.{module}", str(i), *map(self.var, call.arguments)]
            lines += wrapped(f"{results}, = run.data(" if len(call.results) == 1 else
                             f"{results} = run.data(", items, ")", 4)  # fmt: skip
        return lines + _return([self.var(n) for n in self.early])

    def forward(self) -> list[str]:
        inputs = [*self.early, *(n for n in self.received if n not in self.early)]
        names = Names({"functions"})
        where: dict[str, str] = {n: names.of(n, n) for n in inputs}
        lines = wrapped("def forward(", ["run", *(where[n] for n in inputs)], "):", 0)
        gone = {"_"}
        for segment in self.segments:
            held = set(where.values())
            lines += self.forward_segment(segment, where, names)
            needed = {where[n] for n in where if self.used_later(n, segment)}
            lines += _delete(held - needed, gone)
        return lines + _return([where[n] for n in self.sent])

    def forward_segment(
        self, segment: Segment, where: dict[str, str], names: Names
    ) -> list[str]:
        calls = self.model.calls
        head, last = calls[segment.first], calls[segment.last - 1]
        lines = [f"    # {self.remark(segment)}"]
        feeds = {result: position for position, result in segment.carried}
        arguments = []
        for position, name in enumerate(head.arguments):
            way = self.between.forward(segment.first, position)
            arguments.append(names.fresh(name) if way.steps else where[name])
            lines += self.between.lines(way, where[name], arguments[position], "    ")
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
        later = {n for i in self.own() if i >= segment.last for n in self.model.calls[i].arguments}
        return name in later or name in self.sent or name in self.early

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
            f"{left}run.{verb}(", [f"functions.{segment.module}", number, *items], ")",
            8 if segment.loop else 4,
        )  # fmt: skip

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
        gradients = differentiable(self.model)
        tangent: dict[str, str] = {}
        for name in self.sent:
            if name in gradients:
                tangent[name] = names.fresh(f"d_{name}")
        lines = wrapped("def backward(", ["run", *tangent.values()], "):", 0)
        gone = {"_", "None"}
        for segment in reversed(self.segments):
            if segment.function.differentiable:
                lines += self.backward_segment(segment, tangent, names)
                made = {n for c in self.calls(segment) for n in c.results}
                needed = {tangent[n] for n in tangent if n not in made}
                lines += _delete({tangent[n] for n in made & tangent.keys()} - needed, gone)
        returned = [tangent.get(n, "None") for n in self.received if n in gradients]
        return lines + _return(returned)

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
            lines += self.between.lines(way, mine, mine, "    ")
            if name in tangent:
                lines.append(f"    {tangent[name]} = run.add({tangent[name]}, {mine})")
            else:
                tangent[name] = mine
        return lines


def _return(values: list[str]) -> list[str]:
    return wrapped("return (", [f"{values[0]},"] if len(values) == 1 else values, ")", 4)


def _delete(variables: set[str], gone: set[str]) -> list[str]:
    """The statement that lets go of variables, if there are any that have not `gone` yet."""
    ending = sorted(variables - gone)
    gone.update(ending)
    return wrapped("del ", ending, "", 4) if ending else []


def _strings(names: tuple[str, ...]) -> str:
    inner = ", ".join(quoted(n) for n in names)
    return f"({inner}{',' if len(names) == 1 else ''})"


def differentiable(model: Model) -> frozenset[str]:
    """Values that carry a gradient between calls."""
    functions = {f.name: f for f in model.functions}
    return frozenset(
        name
        for call in model.calls
        for name, output in zip(call.results, functions[call.function].outputs, strict=True)
        if output.tangent is not None
    )


def crossing(plan: Plan, model: Model, number: int) -> tuple[str, ...]:
    """Values that stage `number` sends on: made at or before it, used after it."""
    border = plan.stages[number].last
    once = model.once()
    used = {n for c in model.calls[border:] for n in c.arguments}
    return tuple(
        name
        for i, call in enumerate(model.calls[:border])
        if i not in once
        for name in call.results
        if name in used
    )
