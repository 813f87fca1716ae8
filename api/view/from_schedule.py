"""The times of a plan's report: the simulated pipeline, and the parts of a stage's step."""

from __future__ import annotations

from msgspec.structs import replace

from ...cost_model.pipeline.closed_form import schedule_rows
from ...cost_model.pipeline.closed_form import timeline as simulate
from ...cost_model.pipeline.simulate import ScheduleEvent as Slot
from ...ir.plan.plan import Plan
from ...ir.plan.schedules.interleave import peak_in_flight
from .report import Event, TimelineChart

FEW_EVENTS = 64  # up to here, a single stage's timeline also shows its layers


def step_parts(plan: Plan, number: int) -> tuple[tuple[str, float], ...]:
    """The parts of a stage's step, in seconds."""
    stage, step = plan.stages[number], plan.prediction.step_seconds
    both = stage.forward_seconds + stage.backward_seconds
    count = plan.micro_batches_of(number)
    compute = max(0.0, count * (both - stage.communication_seconds))
    exposed = count * stage.communication_seconds
    rest = step - compute - exposed - stage.sync_seconds
    waiting = rest if rest > 1e-9 * step else 0.0  # what is left of a full step is rounding
    return (
        ("compute", compute),
        ("communication", exposed),
        ("gradient sync and optimizer", stage.sync_seconds),
        ("waiting", waiting),
    )


def timeline_of(plan: Plan) -> TimelineChart | None:
    """The pipeline as simulated, then every stage's gradient sync; layers where there is room."""
    simulated = simulate(plan)
    if not simulated:
        return None
    count = len(plan.stages)
    names = [f"stage {i}" for i in range(count)]
    events = [
        Event(e.stage, e.kind, slot_name(plan, e), e.start_seconds, e.end_seconds)
        for e in simulated
    ]
    for number, stage in enumerate(plan.stages):
        end = max(e.end_seconds for e in events if e.row == number)
        if stage.sync_seconds:
            events.append(Event(number, "S", "sync, optimizer", end, end + stage.sync_seconds))
    if count == 1 and len(simulated) <= FEW_EVENTS:
        names.append("layers")
        for e in simulated:
            events += _layer_events(plan, e.kind, e.start_seconds, e.end_seconds)
    rows = schedule_rows(plan)
    activations = [dict(s.memory_terms).get("activations", 0) for s in plan.stages]
    each = tuple(h // max(1, peak_in_flight(rows, s)) for s, h in enumerate(activations))
    steady = tuple(s.peak_bytes - h for s, h in zip(plan.stages, activations, strict=True))
    return TimelineChart(tuple(names), tuple(map(_rounded, events)), steady, each)


def slot_name(plan: Plan, slot: Slot) -> str:
    """`F3`; `F3.1` for the second model chunk of a stage."""
    chunk = f".{slot.chunk}" if plan.chunks_per_stage > 1 else ""
    return f"{slot.kind}{slot.micro_batch}{chunk}"


def _rounded(event: Event) -> Event:
    """Seven digits draw the same picture in half the bytes."""
    start, end = (float(f"{x:.7g}") for x in (event.start_seconds, event.end_seconds))
    return replace(event, start_seconds=start, end_seconds=end)


def _layer_events(plan: Plan, kind: str, start: float, end: float) -> list[Event]:
    """A single stage's forward or backward, divided among its runs of layers in proportion."""
    order = plan.layers if kind == "F" else plan.layers[::-1]
    spans = [
        (x.forward_seconds if kind == "F" else x.backward_seconds) * (x.last - x.first)
        for x in order
    ]
    scale = (end - start) / sum(spans) if any(spans) else 0.0
    events: list[Event] = []
    clock = start
    for layers, span in zip(order, spans, strict=True):
        if span:
            name, calls = plan.shardings[layers.sharding].function, layers.last - layers.first
            label = f"{name} ×{calls}" if calls > 1 else name
            events.append(Event(1, kind, label, clock, clock + span * scale))
        clock += span * scale
    return events
