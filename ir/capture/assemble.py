"""Put a model together: segments become calls, equal segments share one function."""

from __future__ import annotations

import re
from collections.abc import Hashable

from ..model import Call, Function, Model, ModelInput, Op
from .batch import unique
from .differentiate import Body, Given, Kind, differentiate
from .export import ROOT, Recording
from .graph import Graph, replace
from .outline import Segment, canonical, cut

RANDOM = {"plait.dropout.default": 3, "plait.attention.default": 8}


def assemble(name: str, graph: Graph, recording: Recording, batch: int) -> Model:
    """Cut the graph, differentiate each distinct piece once, and name everything."""
    return _Assembler(graph, recording).model(name, batch)


class _Assembler:
    def __init__(self, graph: Graph, recording: Recording) -> None:
        self.graph, self.recording = graph, recording
        self.invocations = recording.invocations
        self.wanted = graph.wanted()
        self.names = {value: i.name for value, i in graph.inputs.items()}
        self.functions: dict[Hashable, Function] = {}
        self.function_names: set[str] = set()
        self.results = 0

    def model(self, name: str, batch: int) -> Model:
        segments = [s for s in cut(self.graph, self.invocations) if s.ops]
        last_use = self.last_uses(segments)
        calls = [self.call(n, s, last_use) for n, s in enumerate(segments)]
        used = {v for s in segments for op in s.ops for v in op.operands()}
        parameters = tuple(
            p for v, p in self.graph.parameters.items() if p.kind != "constant" or v in used
        )
        inputs: tuple[ModelInput, ...] = tuple(self.graph.inputs.values())
        functions = tuple(self.functions.values())
        return Model(
            name, functions, tuple(calls), parameters, inputs, self.names[self.graph.loss], batch
        )

    def last_uses(self, segments: list[Segment]) -> dict[int, int]:
        """The number of the last segment that reads a value; outputs are read at the end."""
        last = {value: n for n, s in enumerate(segments) for op in s.ops for value in op.operands()}
        return {**last, **dict.fromkeys(self.graph.outputs(), len(segments))}

    def call(self, number: int, segment: Segment, last_use: dict[int, int]) -> Call:
        ops = _salted(segment.ops)
        made = [r for op in ops for r in op.results if r >= 0]
        outputs = tuple((r, r in self.wanted) for r in made if last_use.get(r, number) > number)
        given = self.inputs(ops, set(made), segment)
        function = self.function(segment, Body("", ops, given, outputs))
        for result, _ in outputs:
            self.names[result] = f"h{self.results}"
            self.results += 1
        names = {value: p.name for value, p in self.graph.parameters.items()}
        results = {v: b for b, v in self.graph.updates.items()}
        return Call(
            function.name,
            segment.unit[0] if segment.unit else segment.name,
            tuple(names[g.value] for g in given if g.kind in ("parameter", "buffer")),
            tuple(self.names[g.value] for g in given if g.kind == "activation"),
            tuple(self.names[r] for r, _ in outputs),
            tuple((self.names[r], results[r]) for r, _ in outputs if r in results),
        )

    def inputs(self, ops: tuple[Op, ...], made: set[int], segment: Segment) -> tuple[Given, ...]:
        """What the operators read from outside: parameters, buffers, activations, the key."""
        outside = dict.fromkeys(v for op in ops for v in op.operands() if v not in made)
        groups: dict[str, list[Given]] = {
            k: [] for k in ("parameter", "buffer", "activation", "key")
        }
        taken: set[str] = set()
        prefix = segment.unit[0] + "." if segment.unit else ""
        for value in outside:
            held = self.graph.parameters.get(value)
            if value == self.graph.key:
                groups["key"].append(Given(value, "key", "key", False))
            elif held is None:
                name = unique(f"x{len(groups['activation'])}", taken)
                wanted = value in self.wanted
                groups["activation"].append(Given(value, "activation", name, wanted))
            else:
                name = unique(held.name.removeprefix(prefix), taken)
                kind: Kind = "parameter" if held.kind == "parameter" else "buffer"
                groups[kind].append(Given(value, kind, name, value in self.wanted))
        return tuple(g for group in groups.values() for g in group)

    def function(self, segment: Segment, body: Body) -> Function:
        types = self.graph.types
        numbers = {g.value: n for n, g in enumerate(body.inputs)}
        inputs = tuple((g.kind, types[g.value], g.wanted) for g in body.inputs)
        lines = canonical(list(body.ops), self.graph, numbers)
        outputs = tuple((numbers[v], wanted) for v, wanted in body.outputs)
        key = (segment.name if segment.unit is None else "", inputs, lines, outputs)
        if key not in self.functions:
            named = Body(self.function_name(segment), body.ops, body.inputs, body.outputs)
            self.functions[key] = differentiate(named, types, self.scopes(segment))
        return self.functions[key]

    def function_name(self, segment: Segment) -> str:
        if segment.unit is None:
            return unique(segment.name, self.function_names)
        path, invocation = segment.unit
        known = self.invocations[invocation] if invocation >= 0 else None
        return unique(snake_case(known.class_name if known else path), self.function_names)

    def scopes(self, segment: Segment) -> dict[str, str]:
        """Paths inside the call, with nothing in them but letters, digits, dots and underscores."""
        prefix = segment.unit[0] if segment.unit else ""
        found = {}
        for number, invocation in enumerate(self.invocations):
            path = invocation.path
            if prefix and (path == prefix or path.startswith(prefix + ".")):
                path = path[len(prefix) + 1 :]
            if number != ROOT:
                found[str(number)] = re.sub(r"[^\w.]", "_", path, flags=re.ASCII)
        return found


def snake_case(name: str) -> str:
    """`LlamaDecoderLayer` as `llama_decoder_layer`, `ViTLayer` as `vit_layer`."""
    return re.sub(r"(?<=[A-Za-z0-9])(?=[A-Z][a-z])", "_", name).lower()


def _salted(ops: list[Op]) -> tuple[Op, ...]:
    """Number the random operators of a function, so that their masks differ."""
    salted, salt = [], 0
    for op in ops:
        place = RANDOM.get(op.target)
        if place is not None and (op.target != "plait.attention.default" or op.args[7]):
            op = replace(op, args=(*op.args[:place], salt, *op.args[place + 1 :]))
            salt += 1
        salted.append(op)
    return tuple(salted)
