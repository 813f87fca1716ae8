"""Text of a plan, which `parse_plan` reads back: a summary as comments, decisions, then amounts.

    plan GPT2LMHeadModel on dp=2 tp=2
      global_batch = 8
      ...
      stage 0:5
      layers 0:1 sharding 0 keep batch_only              # data under dp=2,tp=2
      layers 2:4 sharding 2 "save 50%" saved [31 44]     # gpt2_block under dp=2,tp=2
      compress gradients over dp of "dp=2,tp=2" by int8

    sharding gpt2_block "dp=2,tp=2" on micro=1 dp=2 tp=2
      ...

    amounts
      cluster = {name=…}
      prediction = {step_seconds=…}
      stage 0
        forward_seconds = …
      layers 0
        forward = {kernels=…}

`0:5` are the calls 0 to 4. `stage` and `layers` stand in the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ..plan.memory_action import MemoryAction
from ..plan.plan import CompressionChoice, Layers, Plan, Span, Stage
from ..plan.sharding import Sharding
from .lexer import TextReader, located, name_text
from .sharding import (
    mesh_text,
    print_sharding,
    read_mesh,
    read_sharding,
    read_strategy,
    strategy_text,
)
from .structure import print_fields, print_value, read_fields, read_value
from .summary import plan_summary

SETTINGS = (
    "model_digest",
    "source",
    "seed",
    "global_batch",
    "micro_batches",
    "schedule",
    "precision",
    "gradient_precision",
    "optimizer",
    "memory_limit_bytes",
    "status",
    "gap",
    "complete",
    "calls",
    "chunkings",
    "cluster_digest",
    "engine",
    "groups",
)
AMOUNTS = ("cluster", "prediction", "alternatives")
STAGE_DECISIONS = ("model_chunks",)
LAYERS_DECISIONS = (
    "first", "last", "sharding", "memory", "batch_only", "saved", "producers", "stage",
)  # fmt: skip


def print_plan(plan: Plan) -> str:
    """A plan in full, below its summary."""
    lines = [f"# {line}".rstrip() for line in plan_summary(plan).splitlines()]
    lines += ["", *_decisions(plan)]
    for sharding in plan.shardings:
        lines += ["", print_sharding(sharding)]
    lines += ["", "amounts", *print_fields(plan, 2, AMOUNTS)]
    for kind, parts, known in (
        ("stage", plan.stages, STAGE_DECISIONS),
        ("layers", plan.layers, LAYERS_DECISIONS),
    ):
        for number, part in enumerate(parts):
            names = [name for name in part.__struct_fields__ if name not in known]
            lines += [f"  {kind} {number}", *print_fields(part, 4, names)]
    return "\n".join(lines)


def _decisions(plan: Plan) -> Iterator[str]:
    yield f"plan {name_text(plan.model)} on {mesh_text(plan.mesh)}".rstrip()
    yield from print_fields(plan, 2, SETTINGS)
    for stage in plan.stages:
        yield "  stage " + " ".join(f"{first}:{last}" for first, last in stage.model_chunks)
    for layers in plan.layers:
        yield f"  {_layers(plan, layers)}"
    for c in plan.compression:
        role, program = name_text(c.role), name_text(c.program)
        yield f"  compress {c.subject} over {role} of {strategy_text(c.strategy)} by {program}"


def _layers(plan: Plan, layers: Layers) -> str:
    memory = name_text(str(layers.memory))
    parts = [f"layers {layers.first}:{layers.last} sharding {layers.sharding} {memory}"]
    if layers.batch_only:
        parts.append("batch_only")
    if layers.stage is not None:
        parts.append(f"stage {layers.stage}")
    if layers.saved:
        parts.append(f"saved {print_value(layers.saved)}")
    if layers.producers:
        parts.append(f"producers {print_value(layers.producers)}")
    sharding = plan.shardings[layers.sharding]
    return f"{' '.join(parts)}  # {name_text(sharding.function)} under {sharding.strategy}"


def parse_plan(text: str) -> Plan:
    """Read what `print_plan` wrote; raises FileError with line and column."""
    return _PlanReader(TextReader(text)).read()


class _PlanReader:
    def __init__(self, reader: TextReader) -> None:
        self.reader = reader
        self.fields: dict[str, Any] = {}
        self.stages: list[dict[str, Any]] = []
        self.layers: list[dict[str, Any]] = []

    def read(self) -> Plan:
        reader, first = self.reader, self.reader.next
        reader.expect("plan")
        self.fields["model"] = reader.name("the model's name")
        reader.expect("on")
        self.fields["mesh"] = read_mesh(reader)
        reader.end_line()
        self.fields |= read_fields(reader, Plan, SETTINGS)
        self.decisions()
        shardings = list[Sharding]()
        while reader.sees("sharding"):
            shardings.append(read_sharding(reader))
        self.fields["shardings"] = tuple(shardings)
        reader.expect("amounts")
        reader.end_line()
        self.fields |= read_fields(reader, Plan, AMOUNTS)
        self.amounts("stage", Stage, STAGE_DECISIONS, self.stages)
        self.amounts("layers", Layers, LAYERS_DECISIONS, self.layers)
        reader.end()
        self.fields["stages"] = tuple(Stage(**fields) for fields in self.stages)
        self.fields["layers"] = tuple(Layers(**fields) for fields in self.layers)
        for field in msgspec.structs.fields(Plan):
            if field.required and field.name not in self.fields:
                raise located(first.line, first.column, f"the plan has no {field.name}")
        return Plan(**self.fields)

    def decisions(self) -> None:
        reader, choices = self.reader, list[CompressionChoice]()
        while reader.accept("stage"):
            spans = [self.span()]
            while reader.next.kind == "number":
                spans.append(self.span())
            self.stages.append({"model_chunks": tuple(spans)})
            reader.end_line()
        while reader.accept("layers"):
            self.layers.append(self.run_of_layers())
            reader.end_line()
        while reader.accept("compress"):
            choices.append(self.compression())
            reader.end_line()
        if choices:
            self.fields["compression"] = tuple(choices)

    def span(self) -> Span:
        """`0:5`."""
        first = self.reader.integer("the first call")
        self.reader.expect(":")
        return first, self.reader.integer("the call after the last")

    def run_of_layers(self) -> dict[str, Any]:
        """`2:4 sharding 2 keep batch_only saved [31] producers [mm]`."""
        reader = self.reader
        first, last = self.span()
        reader.expect("sharding")
        sharding, token = reader.integer("the number of a sharding"), reader.next
        try:
            memory = MemoryAction.parse(reader.name("a memory action"))
        except ValueError as error:
            raise located(token.line, token.column, str(error)) from None
        return {
            "first": first,
            "last": last,
            "sharding": sharding,
            "memory": memory,
            "batch_only": reader.accept("batch_only"),
            "stage": reader.integer("a stage") if reader.accept("stage") else None,
            "saved": read_value(reader, tuple[int, ...]) if reader.accept("saved") else (),
            "producers": read_value(reader, tuple[str, ...]) if reader.accept("producers") else (),
        }

    def compression(self) -> CompressionChoice:
        """`gradients over dp of "dp=2,tp=2" by int8`."""
        reader = self.reader
        if not reader.sees("gradients", "weights", "activations", "rows"):
            reader.fail("gradients, weights, activations or rows")
        subject = reader.take().text
        reader.expect("over")
        role = reader.name("a role")
        reader.expect("of")
        strategy = read_strategy(reader)
        reader.expect("by")
        program = reader.name("a program")
        return CompressionChoice(strategy, role, subject, program)  # type: ignore[arg-type]

    def amounts(
        self,
        kind: str,
        struct: type[msgspec.Struct],
        decisions: tuple[str, ...],
        parts: list[dict[str, Any]],
    ) -> None:
        """The fields of all stages, or of all runs of layers, that are no decisions."""
        names = [name for name in struct.__struct_fields__ if name not in decisions]
        for number, part in enumerate(parts):
            self.reader.expect(kind)
            if self.reader.integer(f"{number}") != number:
                self.reader.at -= 1
                self.reader.fail(f"{kind} {number}")
            self.reader.end_line()
            part |= read_fields(self.reader, struct, names)
