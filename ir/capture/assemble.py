"""Assemble a model: segments become calls, equal segments share one function."""

from __future__ import annotations

import re
from collections.abc import Hashable

from ..errors import TraceError
from ..model.model import Call, Function, Model, ModelInput, Op, Ref
from ..passes import Observer, Pass, run
from .batch import unique
from .differentiate import BodyInput, Differentiate, FunctionBody, InputKind
from .export import ROOT, Recording
from .graph import FlatGraph, replace
from .outline import GraphSegment, Outline, canonical
from .passes.pairs import refuse_torn, settle_pairs

RANDOM = {"plait.dropout.default": 3, "plait.attention.default": 8, "plait.uniform.default": 1}


class Assemble(Pass[FlatGraph, Model], frozen=True):
    """Outline a graph, differentiate each distinct segment once, and name the results.

    `model_name` and `batch` are the model's; the observer is shown what the passes inside give.
    """

    model_name: str
    batch: int
    recording: Recording
    observer: Observer | None = None
    name = "assemble"

    def apply(self, value: FlatGraph) -> Model:
        settle_pairs(value)
        copy_updates(value)
        outline = Outline(self.recording.invocations)
        segments = [s for s in run(outline, value, self.observer) if s.ops]
        refuse_torn(segments, self.recording.pairs)
        return _Assembler(value, self.recording, self.observer).model(self, segments)


def copy_updates(graph: FlatGraph) -> None:
    """Give every new value of a buffer an operator of its own: it may be an input as it is (the batch,
    a parameter, another buffer) or the new value of two buffers, and calls name results."""
    results = {r for op in graph.ops for r in op.results}
    for name, value in graph.updates.items():
        if value not in results:
            (value,) = graph.emit(
                "aten.clone.default", (Ref(value),), (graph.types[value],), None, str(ROOT)
            )
            graph.updates[name] = value
        results.discard(value)


class _Assembler:
    def __init__(self, graph: FlatGraph, recording: Recording, observer: Observer | None) -> None:
        self.graph, self.recording, self.observer = graph, recording, observer
        self.invocations = recording.invocations
        self.needs_gradient = graph.wanted()
        self.names = {value: i.name for value, i in graph.inputs.items()}
        self.functions: dict[Hashable, Function] = {}
        self.function_names: set[str] = set()
        self.results = 0

    def model(self, options: Assemble, segments: list[GraphSegment]) -> Model:
        last_use = self.last_uses(segments)
        calls = [self.call(n, s, last_use) for n, s in enumerate(segments)]
        used = {v for s in segments for op in s.ops for v in op.operands()}
        parameters = tuple(
            p for v, p in self.graph.parameters.items() if p.kind != "constant" or v in used
        )
        inputs: tuple[ModelInput, ...] = tuple(self.graph.inputs.values())
        functions = tuple(self.functions.values())
        loss = self.names[self.graph.loss]
        return Model(
            options.model_name,
            functions,
            tuple(calls),
            parameters,
            inputs,
            loss,
            options.batch,
            self.recording.constants,
            tuple(self.output_name(value) for value in self.graph.returned),
        )

    def output_name(self, value: int) -> str:
        if value in self.graph.parameters:
            raise TraceError(
                f"an output of the model is {self.graph.parameters[value].name} itself: read it from "
                "state_dict"
            )
        return self.names[value]

    def last_uses(self, segments: list[GraphSegment]) -> dict[int, int]:
        """Number of the last segment that reads each value; model outputs are read at the end."""
        last = {value: n for n, s in enumerate(segments) for op in s.ops for value in op.operands()}
        return {**last, **dict.fromkeys(self.graph.outputs(), len(segments))}

    def call(self, number: int, segment: GraphSegment, last_use: dict[int, int]) -> Call:
        ops = _with_stream_ids(segment.ops)
        produced = [r for op in ops for r in op.results if r >= 0]
        outputs = tuple(
            (r, r in self.needs_gradient) for r in produced if last_use.get(r, number) > number
        )
        inputs = self.inputs(ops, set(produced), segment)
        function = self.function(segment, FunctionBody("", ops, inputs, outputs))
        for result, _ in outputs:
            self.names[result] = f"h{self.results}"
            self.results += 1
        names = {value: p.name for value, p in self.graph.parameters.items()}
        results = {v: b for b, v in self.graph.updates.items()}
        return Call(
            function.name,
            segment.unit[0] if segment.unit else segment.name,
            tuple(names[g.value] for g in inputs if g.kind in ("parameter", "buffer")),
            tuple(self.names[g.value] for g in inputs if g.kind == "activation"),
            tuple(self.names[r] for r, _ in outputs),
            tuple((self.names[r], results[r]) for r, _ in outputs if r in results),
        )

    def inputs(
        self, ops: tuple[Op, ...], produced: set[int], segment: GraphSegment
    ) -> tuple[BodyInput, ...]:
        """Inputs of the operators: parameters, buffers, activations, then the random key."""
        outside = dict.fromkeys(v for op in ops for v in op.operands() if v not in produced)
        groups: dict[str, list[BodyInput]] = {
            k: [] for k in ("parameter", "buffer", "activation", "key")
        }
        names: set[str] = set()
        prefix = segment.unit[0] + "." if segment.unit else ""
        for value in outside:
            parameter = self.graph.parameters.get(value)
            if value == self.graph.key:
                groups["key"].append(BodyInput(value, "key", "key", False))
            elif parameter is None:
                name = unique(f"x{len(groups['activation'])}", names)
                wanted = value in self.needs_gradient
                groups["activation"].append(BodyInput(value, "activation", name, wanted))
            else:
                name = unique(parameter.name.removeprefix(prefix), names)
                kind: InputKind = "parameter" if parameter.kind == "parameter" else "buffer"
                groups[kind].append(BodyInput(value, kind, name, value in self.needs_gradient))
        return tuple(g for group in groups.values() for g in group)

    def function(self, segment: GraphSegment, body: FunctionBody) -> Function:
        types = self.graph.types
        numbers = {g.value: n for n, g in enumerate(body.inputs)}
        inputs = tuple((g.kind, types[g.value], g.wanted) for g in body.inputs)
        lines = canonical(list(body.ops), self.graph, numbers)
        outputs = tuple((numbers[v], wanted) for v, wanted in body.outputs)
        key = (segment.name if segment.unit is None else "", inputs, lines, outputs)
        if key not in self.functions:
            named = FunctionBody(self.function_name(segment), body.ops, body.inputs, body.outputs)
            lines = {str(n): i.line for n, i in enumerate(self.invocations) if i.line}
            step = Differentiate(types, self.scopes(segment), lines, self.observer)
            self.functions[key] = run(step, named, self.observer)
        return self.functions[key]

    def function_name(self, segment: GraphSegment) -> str:
        if segment.unit is None:
            return unique(segment.name, self.function_names)
        path, invocation = segment.unit
        known = self.invocations[invocation] if invocation >= 0 else None
        return unique(snake_case(known.class_name if known else path), self.function_names)

    def scopes(self, segment: GraphSegment) -> dict[str, str]:
        """Module paths inside the call, by invocation, with only [A-Za-z0-9_.] in them."""
        prefix = segment.unit[0] if segment.unit else ""
        paths = {}
        for number, invocation in enumerate(self.invocations):
            path = invocation.path
            if prefix and (path == prefix or path.startswith(prefix + ".")):
                path = path[len(prefix) + 1 :]
            if number != ROOT:
                paths[str(number)] = re.sub(r"[^\w.]", "_", path, flags=re.ASCII)
        return paths


def snake_case(name: str) -> str:
    """`LlamaDecoderLayer` as `llama_decoder_layer`, `ViTLayer` as `vit_layer`."""
    return re.sub(r"(?<=[A-Za-z0-9])(?=[A-Z][a-z])", "_", name).lower()


def _with_stream_ids(ops: list[Op]) -> tuple[Op, ...]:
    """Give the random operators of a function distinct stream ids, so that their masks differ."""
    numbered, stream_id = [], 0
    for op in ops:
        place = RANDOM.get(op.target)
        if place is not None and (op.target != "plait.attention.default" or op.args[7]):
            op = replace(op, args=(*op.args[:place], stream_id, *op.args[place + 1 :]))
            stream_id += 1
        numbered.append(op)
    return tuple(numbered)
