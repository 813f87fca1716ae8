"""What a report shows, as plain data: made from a plan or a model, drawn by `page`."""

from __future__ import annotations

import msgspec

from ...cost_model.pipeline import timeline
from ...ir.model import Function, Model
from ...ir.plan import Layers, Plan
from ...ir.text import count, gib, one_line, parameters, seconds


class Box(msgspec.Struct, frozen=True):
    """A run of equal calls: `times` layers drawn as one. `rows` is its inside, `share` of the step."""

    title: str
    subtitle: str
    times: int
    stage: int
    share: float
    facts: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, str], ...]


class Event(msgspec.Struct, frozen=True, array_like=True):
    stage: int
    kind: str
    micro_batch: int
    start_seconds: float
    end_seconds: float


class Report(msgspec.Struct, frozen=True):
    """A page: headline facts, boxes in order, memory terms per stage, the timeline, time parts."""

    title: str
    facts: tuple[tuple[str, str], ...]
    boxes: tuple[Box, ...]
    budget_bytes: int = 0
    memory: tuple[tuple[tuple[str, int], ...], ...] = ()
    events: tuple[Event, ...] = ()
    parts: tuple[tuple[tuple[str, float], ...], ...] = ()
    alternatives: tuple[tuple[str, ...], ...] = ()


def report_of_plan(plan: Plan, model: Model | None = None) -> Report:
    """The report of a plan; with its model, boxes open to show their operators."""
    p, peak = plan.prediction, max(s.peak_bytes for s in plan.stages)
    facts = (
        ("cluster", str(plan.cluster)),
        ("strategy", str(plan.strategy)),
        ("step", seconds(p.step_seconds)),
        ("tokens/s", count(p.tokens_per_second)),
        ("MFU", f"{100 * p.mfu:.1f} %"),
        ("peak", f"{gib(peak)} of {gib(plan.budget_bytes)}"),
        ("batch", f"{plan.global_batch} in {plan.micro_batches} micro-batches"),
        ("bubble", f"{100 * p.bubble:.1f} %"),
    )
    functions = {f.name: f for f in model.functions} if model else {}
    events = tuple(Event(*row) for row in timeline(plan))
    return Report(
        title=one_line(plan.model),
        facts=facts,
        boxes=tuple(_box(plan, x, functions) for x in plan.layers),
        budget_bytes=plan.budget_bytes,
        memory=tuple(s.memory for s in plan.stages),
        events=events,
        parts=tuple(_parts(plan, s) for s in range(len(plan.stages))),
        alternatives=tuple(
            (a.word, f"{a.micro_batches}", a.memory, seconds(a.step_seconds),
             f"{100 * (a.step_seconds / p.step_seconds - 1):+.1f} %", gib(a.peak_bytes),
             "fits" if a.fits else "too large")
            for a in plan.alternatives
        ),
    )  # fmt: skip


def _box(plan: Plan, layers: Layers, functions: dict[str, Function]) -> Box:
    sharding = plan.shardings[layers.sharding]
    times = layers.last - layers.first
    total = sum(
        (x.forward_seconds + x.backward_seconds) * (x.last - x.first) for x in plan.layers
    )
    each = layers.forward_seconds + layers.backward_seconds
    function = functions.get(sharding.function)
    return Box(
        title=sharding.function,
        subtitle=f"{seconds(each)} each" if each else "once per step",
        times=times,
        stage=next(i for i, s in enumerate(plan.stages) if s.first <= layers.first < s.last),
        share=each * times / total if total else 0.0,
        facts=(
            ("calls", str(times)),
            ("strategy", str(sharding.strategy)),
            ("activations", layers.memory),
            ("forward", seconds(layers.forward_seconds)),
            ("backward", seconds(layers.backward_seconds)),
            ("share of compute", f"{100 * each * times / total:.1f} %" if total else "0 %"),
            *_lying(plan, layers),
        ),
        rows=_rows(function) if function else (),
    )


def _lying(plan: Plan, layers: Layers) -> tuple[tuple[str, str], ...]:
    """How many operators an axis really splits."""
    sharding = plan.shardings[layers.sharding]
    lines = []
    for axis, name in enumerate(a.name for a in sharding.mesh.axes):
        split = sum(choice[axis] > 0 for choice in sharding.choices)
        if sharding.mesh.axes[axis].size > 1:
            lines.append((f"split by {name}", f"{split} of {len(sharding.choices)} operators"))
    return tuple(lines)


def _rows(function: Function) -> tuple[tuple[str, str], ...]:
    """(module path, what it computes) of the forward, neighbours of one module folded together."""
    rows: list[tuple[str, list[str]]] = []
    for op in function.forward_ops:
        name = op.target.split(".")[1]
        if rows and rows[-1][0] == op.scope:
            rows[-1][1].append(name)
        else:
            rows.append((op.scope, [name]))
    return tuple((scope or "·", ", ".join(names)) for scope, names in rows)


def _parts(plan: Plan, number: int) -> tuple[tuple[str, float], ...]:
    """Where a stage's step goes, in seconds."""
    stage, step = plan.stages[number], plan.prediction.step_seconds
    both = stage.forward_seconds + stage.backward_seconds
    busy = plan.micro_batches * (both - stage.communication_seconds)
    exposed = plan.micro_batches * stage.communication_seconds
    rest = max(0.0, step - busy - exposed - stage.sync_seconds)
    return (
        ("compute", max(0.0, busy)), ("communication", exposed),
        ("gradient sync and optimizer", stage.sync_seconds), ("waiting", rest),
    )  # fmt: skip


def report_of_model(model: Model) -> Report:
    """The report of a model alone: its calls, runs of equal layers folded."""
    functions = {f.name: f for f in model.functions}
    boxes: list[Box] = []
    for call in model.calls:
        if boxes and boxes[-1].title == call.function:
            boxes[-1] = msgspec.structs.replace(boxes[-1], times=boxes[-1].times + 1)
            continue
        function = functions[call.function]
        boxes.append(
            Box(
                call.function, f"{len(function.ops)} operators", 1, 0, 0.0,
                (("operators", str(len(function.ops))), ("forward", str(function.forward)),
                 ("path", one_line(call.path))),
                _rows(function),
            )
        )  # fmt: skip
    facts = (
        ("parameters", count(parameters(model))),
        ("functions", str(len(model.functions))),
        ("calls", str(len(model.calls))),
        ("batch", str(model.batch)),
    )
    return Report(one_line(model.name), facts, tuple(boxes))
