"""A model chunk as functions of a stage's module: its calls in order, and their values.

`forward` and `backward` run once per micro-batch. Equal consecutive layers are a loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from ..ir.lowering.common_mesh import Resharding
from ..ir.lowering.plan_layouts import PlanLayouts
from ..ir.model.layout import shard_position
from ..ir.model.model import Call, Model
from ..ir.plan.memory_action import MemoryAction
from ..ir.plan.plan import Layers, Plan
from ..ir.plan.program import chunk_function
from ..ir.plan.schedules.chunk_map import ChunkPlace
from ..ir.plan.schedules.registry import splits_backward
from .call_segment import CallSegment, WeightGatherCode
from .lower import LoweredFunction
from .python_source import (
    WIDTH,
    VariableNames,
    comm_method,
    comment_text,
    milliseconds,
    return_statement,
    wrapped,
)

Modules = Mapping[tuple[int, MemoryAction], LoweredFunction]  # by sharding and memory


class ModelChunkCode:
    """Writes `forward` and `backward` of the model chunk at a place."""

    def __init__(
        self,
        plan: Plan,
        model: Model,
        layouts: PlanLayouts,
        modules: Modules,
        place: ChunkPlace,
        prefetches: bool = True,
    ) -> None:
        self.plan, self.model, self.layouts, self.modules = plan, model, layouts, modules
        self.chunk, number = place.chunk, plan.chunk_map.number(*place)
        self.graph = layouts.graph
        self.calls_of_chunk = layouts.micro_batch_calls(number)
        self.segments = [
            s
            for layers in plan.layers
            if layers.first in self.calls_of_chunk
            for s in self.fold(layers)
        ]
        before, after = (
            layouts.stage_transfers(number - 1) if number else (),
            layouts.chunk_outputs(number),
        )
        self.received, self.sent = (tuple(v.name for v in values) for values in (before, after))
        self.gathers = WeightGatherCode(plan, self.segments, number, enabled=prefetches)
        self.returning = {v.name for v in (*before, *after) if v.gradient}

    def function_name(self, direction: str) -> str:
        return chunk_function(direction, self.chunk, self.plan.chunks_per_stage)

    def fold(self, layers: Layers) -> list[CallSegment]:
        """One loop when every call feeds only the next one, else one statement per call."""
        low = self.modules[layers.sharding, layers.memory]
        function = self.graph.functions[low.sharding.function]
        carried = self.carried(layers)
        if carried is not None:
            return [CallSegment(layers, low.name, function, layers.first, layers.last, carried)]
        return [
            CallSegment(layers, low.name, function, i, i + 1, ())
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
            for n in inner
            for end in self.graph.readers(n)
            if not layers.first < end.call < layers.last
        }
        if outside or inner - fed - self.unused(calls[0]) or self.model.loss in inner:
            return None
        return tuple(pairs)

    def unused(self, call: Call) -> set[str]:
        return {
            n
            for c in self.model.calls
            if c.function == call.function
            for n in c.results
            if not self.graph.readers(n)
        }

    def forward(self, batch_only: Sequence[str]) -> list[str]:
        """Source of `forward`; `batch_only` are the stage's batch-only values."""
        inputs = [*batch_only, *(n for n in self.received if n not in batch_only)]
        names = VariableNames({"functions"})
        where: dict[str, str] = {n: names.of(n, n) for n in inputs}
        lines = wrapped(
            f"def {self.function_name('forward')}(", ["run", *(where[n] for n in inputs)], "):", 0
        )
        lines += self.gathers.first(self.segments)
        gone = {"_"}
        for segment in self.segments:
            live = set(where.values())
            lines += self.forward_segment(segment, where, names)
            needed = {where[n] for n in where if n in batch_only or self.used_later(n, segment)}
            if segment is not self.segments[-1]:
                lines += _delete(live - needed, gone)
        return lines + return_statement([where[n] for n in self.sent])

    def forward_segment(
        self, segment: CallSegment, where: dict[str, str], names: VariableNames
    ) -> list[str]:
        calls = self.model.calls
        head, last = calls[segment.first], calls[segment.last - 1]
        lines = [f"    # {self.segment_comment(segment)}"]
        feeds = {result: position for position, result in segment.carried}
        arguments: list[str] = []
        for position, name in enumerate(head.arguments):
            resharding = self.layouts.forward_resharding(segment.first, position)
            arguments.append(names.fresh(name) if resharding.steps else where[name])
            lines += self.reshard(resharding, where[name], arguments[position])
        carried: dict[int, str] = {}  # argument position -> loop-carried variable
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
        before = self.gathers.beside(segment, self.segments)
        before += self.gathers.retained(segment)
        return lines + self.statement(segment, "forward", results, arguments, before)

    def calls(self, segment: CallSegment) -> tuple[Call, ...]:
        return self.model.calls[segment.first : segment.last]

    def used_later(self, name: str, segment: CallSegment) -> bool:
        later = {
            n
            for i in self.calls_of_chunk
            if i >= segment.last
            for n in self.model.calls[i].arguments
        }
        return name in later or name in self.sent

    def statement(
        self,
        segment: CallSegment,
        verb: str,
        results: list[str],
        items: list[str],
        before: Sequence[str] = (),
    ) -> list[str]:
        """The calls of a segment as one statement; `before` are statements before each call."""
        reverse = verb != "forward"
        number = "call" if segment.loop else str(segment.first)
        calls = f"range({segment.first}, {segment.last})"
        lines = []
        if segment.loop:
            lines.append(f"    for call in {f'reversed({calls})' if reverse else calls}:")
        lines += [f"{'        ' if segment.loop else '    '}{line}" for line in before]
        left = f"{', '.join(results)}{',' if len(results) == 1 else ''} = " if results else ""
        return lines + wrapped(
            f"{left}run.{verb}(",
            [f"functions.{segment.module}", number, *items],
            ")",
            8 if segment.loop else 4,
        )

    def reshard(self, resharding: Resharding, source: str, target: str) -> list[str]:
        """Statements of a resharding from one variable to another."""
        grid, lines = self.layouts.mesh, []
        for step in resharding.steps:
            items = [source, f'"{grid.axes[step.axis].name}"']
            for state, layout in ((step.source, step.before), (step.target, step.after)):
                if isinstance(state, tuple):
                    items += map(str, shard_position(resharding.factors, layout, grid, state))
            lines.append(f"    {target} = run.grid.{comm_method(step.kind)}({', '.join(items)})")
            source = target
        return lines

    def segment_comment(self, segment: CallSegment) -> str:
        layers, calls = segment.layers, self.model.calls
        path = comment_text(calls[segment.first].path or segment.module)
        if segment.loop:
            path += f" to {comment_text(calls[segment.last - 1].path)}"
        return (
            f"{path}: {self.plan.strategy_of(layers)}, {layers.memory}; forward "
            f"{milliseconds(layers.forward_seconds)}, backward "
            f"{milliseconds(layers.backward_seconds)} each"
        )[:94]

    def backward_segments(self) -> list[CallSegment]:
        """The segments that have a backward, in its order."""
        return [s for s in reversed(self.segments) if s.function.differentiable]

    def backward_functions(self) -> list[list[str]]:
        """Backward at once, or the two functions of its parts."""
        if not splits_backward(self.plan.schedule):
            return [self.backward("backward")]
        return [self.backward("backward_inputs"), self.backward_weights()]

    def backward_weights(self) -> list[str]:
        """Source of the part of backward that nothing waits for."""
        lines = [f"def {self.function_name('backward_weights')}(run):"]
        for segment in reversed(self.segments):
            if segment.function.differentiable and self.in_parts(segment):
                lines += self.statement(segment, "backward_weights", [], [])
        return lines if len(lines) > 1 else [*lines, "    pass"]

    def in_parts(self, segment: CallSegment) -> bool:
        """Whether the backward of these calls runs in two parts."""
        return self.modules[segment.layers.sharding, segment.layers.memory].parts is not None

    def backward(self, function: str) -> list[str]:
        """Source of backward, or of the part of it that the model chunk before waits for."""
        names = VariableNames({"functions"})
        tangent: dict[str, str] = {}
        for name in self.sent:
            if name in self.returning:
                tangent[name] = names.fresh(f"d_{name}")
        lines = wrapped(f"def {self.function_name(function)}(", ["run", *tangent.values()], "):", 0)
        lines += self.gathers.first(self.backward_segments(), backward=True)
        gone = {"_", "None"}
        for segment in self.backward_segments():
            lines += self.backward_segment(segment, tangent, names)
            produced = {n for c in self.calls(segment) for n in c.results}
            needed = {tangent[n] for n in tangent if n not in produced}
            if segment is not self.segments[0]:
                lines += _delete({tangent[n] for n in produced & tangent.keys()} - needed, gone)
        inputs = [n for n in self.received if n in self.returning]
        return lines + return_statement([tangent.get(n, "None") for n in inputs])

    def backward_segment(
        self, segment: CallSegment, tangent: dict[str, str], names: VariableNames
    ) -> list[str]:
        head, last = self.model.calls[segment.first], self.model.calls[segment.last - 1]
        feeds = dict(segment.carried)
        items = [
            tangent.get(name, "None")
            for name, output in zip(last.results, segment.function.outputs, strict=True)
            if output.tangent is not None
        ]
        lines, results, accumulations = [], [], []
        after: list[
            tuple[int, str]
        ] = []  # (position, variable) of loop results and values to reshard
        for position, item in enumerate(segment.function.activations()):
            name = head.arguments[position]
            if item.gradient is None:
                results.append("_")
                continue
            if segment.loop and position in feeds:
                variable = tangent.get(last.results[feeds[position]]) or names.fresh(f"d_{name}")
                results.append(variable)
                after.append((position, variable))
                continue
            if self.layouts.backward_resharding(segment.first, position).steps:
                variable = names.fresh(f"d_{name}_part")
                results.append(variable)
                if segment.loop:
                    after.append((position, names.fresh(f"d_{name}_sum")))
                    lines.append(f"    {after[-1][1]} = None")
                    accumulations.append(f"{after[-1][1]} = run.add({after[-1][1]}, {variable})")
                else:
                    after.append((position, variable))
                continue
            if name in tangent or segment.loop or head.arguments.count(name) > 1:
                part = names.fresh(f"d_{name}_part")
                if name not in tangent:
                    tangent[name] = names.fresh(f"d_{name}")
                    lines.append(f"    {tangent[name]} = None")
                results.append(part)
                accumulations.append(f"{tangent[name]} = run.add({tangent[name]}, {part})")
            else:
                tangent[name] = names.fresh(f"d_{name}")
                results.append(tangent[name])
        verb = "backward_inputs" if self.in_parts(segment) else "backward"
        before = self.gathers.beside(segment, self.backward_segments(), backward=True)
        lines += self.statement(segment, verb, results, items, before)
        lines += [f"{'        ' if segment.loop else '    '}{line}" for line in accumulations]
        for position, variable in after:
            name = head.arguments[position]
            resharding = self.layouts.backward_resharding(segment.first, position)
            lines += self.reshard(resharding, variable, variable)
            if name in tangent:
                lines.append(f"    {tangent[name]} = run.add({tangent[name]}, {variable})")
            else:
                tangent[name] = variable
        return lines


def _delete(variables: set[str], gone: set[str]) -> list[str]:
    """Statement that deletes variables that are not yet in `gone`, if any."""
    ending = sorted(variables - gone)
    gone.update(ending)
    line = f"    del {', '.join(ending)}"
    if len(line) > WIDTH:
        return wrapped("del (", ending, ")", 4)
    return [line] if ending else []
