"""The times of a plan's report: the simulated pipeline, and the parts of a stage's step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ....cost_model.communication.stage_transfer import plan_transfers
from ....cost_model.explain.by_kind import exposed_seconds_by_kind
from ....cost_model.explain.step_terms import StageTerms, stage_terms
from ....cost_model.explain.term import Term
from ....cost_model.pipeline.closed_form import chunk_shares, schedule_rows, simulate_plan
from ....cost_model.pipeline.group_pipeline import gradient_sum_seconds, groups_step
from ....cost_model.pipeline.simulate import ScheduleEvent as Slot
from ....ir.plan.plan import Layers, Plan
from ....ir.plan.schedules.interleave import peak_in_flight
from ....ir.text.units import micro_batches
from ..call_names import span_name
from ..report import Event, SlotKind, SlotRow, TimelineChart
from .plan_graph import plan_path

FEW_EVENTS = 64  # up to here, a single stage's timeline also shows its layers
MOST_SLOTS = 150_000  # of a step: longer ones have no timeline
TICKS = 1_000_000  # of a step: waits are written in these
Parts = tuple[tuple[str, float], ...]


def step_parts(plan: Plan, number: int) -> Parts:
    """The parts of a stage's step, in seconds: compute, collectives by group, optimizer, waiting."""
    terms = stage_terms(plan, number)
    parts = merged(
        [*kinds(terms.forward), *kinds(terms.backward), *sync_parts(plan, number, terms)]
    )
    rest = plan.prediction.step_seconds - sum(amount for _, amount in parts)
    waiting = rest if rest > 1e-9 * plan.prediction.step_seconds else 0.0  # below is rounding
    return (*parts, ("waiting", waiting)) if waiting else parts


def kinds(half: Term) -> Parts:
    """Seconds of computing, and of every kind of collective beside which nothing is computed."""
    seconds = exposed_seconds_by_kind(half)
    return merged((traffic(name) or "compute", s) for name, s in seconds.items())


def sync_parts(plan: Plan, number: int, terms: StageTerms) -> Parts:
    """Seconds of what a stage does once per step: it adds up gradients, updates, gathers weights."""
    named = [
        (traffic(name) or (name if name == "optimizer" else "compute"), s)
        for name, s in exposed_seconds_by_kind(terms.sync).items()
    ]
    if plan.groups:
        added = gradient_sum_seconds(plan.cluster, plan.groups, plan.stages)[number]
        elsewhere = ("sums of gradients over groups", added)
        updates = next((i for i, (name, _) in enumerate(named) if name == "optimizer"), len(named))
        named.insert(updates, elsewhere)
    return merged(named)


def traffic(name: str) -> str:
    """The name of a collective's term; empty for a term that computes."""
    sends = (" over ", " of weights", " of gradients", "resharding", "sends ", "transfer")
    return name if any(phrase in name for phrase in sends) else ""


def merged(parts: Iterable[tuple[str, float]]) -> Parts:
    """Parts of one name added up; the rest keeps its order, computing first."""
    total: dict[str, float] = {}
    for name, amount in parts:
        if amount > 0:
            total[name] = total.get(name, 0.0) + amount
    return tuple(sorted(total.items(), key=lambda item: item[0] != "compute"))


def timeline_of(plan: Plan) -> TimelineChart | None:
    """The pipeline as simulated, then every stage's gradient sync; layers where there is room."""
    count = 2 * len(plan.model_chunks) * plan.micro_batches
    if count > MOST_SLOTS:
        return None
    simulated = simulated_slots(plan)
    tick = plan.prediction.step_seconds / TICKS
    by_stage: list[list[Slot]] = [[] for _ in plan.stages]
    for slot in simulated:
        by_stage[slot.stage].append(slot)
    terms = [stage_terms(plan, number) for number in range(len(plan.stages))]
    names = [stage_name(plan, number) for number in range(len(plan.stages))]
    events = [
        event
        for number, ran in enumerate(by_stage)
        for event in [
            *_named_slots(ran),
            *_sync_events(number, ran[-1].end_seconds, sync_parts(plan, number, terms[number])),
        ]
    ]
    if len(plan.stages) == 1 and len(simulated) <= FEW_EVENTS:
        names.append("layers")
        for slot in simulated:
            events += _layer_events(plan, slot.kind, slot.start_seconds, slot.end_seconds)
    rows = schedule_rows(plan)
    activations = [dict(s.memory_terms).get("activations", 0) for s in plan.stages]
    each = tuple(h // max(1, peak_in_flight(rows, s)) for s, h in enumerate(activations))
    steady = tuple(s.peak_bytes - h for s, h in zip(plan.stages, activations, strict=True))
    return TimelineChart(
        rows=tuple(names),
        events=tuple(map(_rounded, events)),
        slots=tuple(
            slot_row(ran if _in_order(ran) else [], _made_of(plan, number, terms[number]), tick)
            for number, ran in enumerate(by_stage)
        ),
        tick_seconds=tick,
        steady_bytes=steady,
        each_bytes=each,
        hint=_counted(plan, simulated),
    )


def _counted(plan: Plan, slots: Sequence[Slot]) -> str:
    """`16 micro-batches, 128 forwards and 128 backwards`; of one stage and micro-batch nothing."""
    if len(slots) == 2:
        return "one micro-batch"
    forwards = sum(slot.kind == "F" for slot in slots)
    backwards = sum(slot.kind in "BI" for slot in slots)
    return (
        f"{micro_batches(plan.micro_batches)}, {forwards:,} forwards and {backwards:,} backwards"
        " of all stages"
    )


def stage_name(plan: Plan, number: int) -> str:
    """`stage 1`; of device groups with their kind: `stage 1 · h100`."""
    kind = f" · {plan.cluster_of(number).device.kind}" if plan.groups else ""
    return f"stage {number}{kind}"


def simulated_slots(plan: Plan) -> tuple[Slot, ...]:
    """Every forward and backward of a step, however many."""
    if plan.groups:
        return groups_step(plan).timeline.events
    busy = [(stage.forward_seconds, stage.backward_seconds) for stage in plan.stages]
    sends = [transfer.seconds for transfer in plan_transfers(plan)]
    return simulate_plan(plan, busy, sends).events


def _in_order(slots: Sequence[Slot]) -> bool:
    """Whether the micro-batches of every kind and chunk count up from 0, as letters of a row do."""
    counts: Counter[tuple[str, int]] = Counter()
    for slot in slots:
        if slot.micro_batch != counts[slot.kind, slot.chunk]:
            return False
        counts[slot.kind, slot.chunk] += 1
    return True


def _named_slots(slots: Sequence[Slot]) -> list[Event]:
    """Slots one by one, where a device group runs only some of the micro-batches."""
    if _in_order(slots):
        return []
    return [
        Event(s.stage, s.kind, f"{s.kind}{s.micro_batch}", s.start_seconds, s.end_seconds)
        for s in slots
    ]


def _made_of(plan: Plan, number: int, terms: StageTerms) -> dict[tuple[str, int], Parts]:
    """What a forward and a backward of every chunk is made of, as shares of its time."""
    stage = plan.stages[number]
    shares, count = chunk_shares(plan, stage), plan.micro_batches_of(number)
    backward = kinds(terms.backward)
    inputs, weights = inputs_and_weights(backward, stage.weights_share)
    halves = {"F": kinds(terms.forward), "B": backward, "I": inputs, "W": weights}
    return {
        (kind, chunk): tuple((name, _digits(s * share / count)) for name, s in half)
        for chunk, share in enumerate(shares)
        for kind, half in halves.items()
    }


def inputs_and_weights(backward: Parts, share: float) -> tuple[Parts, Parts]:
    """Backward of inputs and of weights, which take this share of it: the latter computes, as far as
    there is computing; what the stage before waits for has the collectives."""
    left = share * sum(amount for _, amount in backward)
    inputs: list[tuple[str, float]] = []
    weights: list[tuple[str, float]] = []
    for name, amount in backward:  # computing comes first
        taken = min(amount, left)
        left -= taken
        inputs.append((name, amount - taken))
        weights.append((name, taken))
    return merged(inputs), merged(weights)


def slot_row(slots: Sequence[Slot], made_of: dict[tuple[str, int], Parts], tick: float) -> SlotRow:
    """A row in letters; what is decoded lies within a tick of what was simulated."""
    letters: dict[tuple[str, int], SlotKind] = {}
    texts: list[str] = []
    clock = 0.0
    for slot in slots:
        key = slot.kind, slot.chunk
        if key not in letters:
            letters[key] = SlotKind(*key, slot.seconds, made_of.get(key, ()))
        wait = round((slot.start_seconds - clock) / tick) if tick else 0
        texts.append((str(wait) if wait > 0 else "") + chr(97 + list(letters).index(key)))
        clock += max(wait, 0) * tick + letters[key].seconds
    return SlotRow(tuple(letters.values()), "".join(texts))


def _sync_events(row: int, clock: float, parts: Parts) -> list[Event]:
    """Gradient sync and optimizer of a stage, one after the other."""
    events: list[Event] = []
    for name, duration in parts:
        kind = "O" if name == "optimizer" else "S"
        events.append(Event(row, kind, name, clock, clock + duration))
        clock += duration
    return events


def _digits(value: float) -> float:
    """Seven digits draw the same picture in half the bytes."""
    return float(f"{value:.7g}")


def _rounded(event: Event) -> Event:
    start, end = _digits(event.start_seconds), _digits(event.end_seconds)
    return Event(event.row, event.kind, event.label, start, end)


def _layer_events(plan: Plan, kind: str, start: float, end: float) -> list[Event]:
    """A single stage's forward or backward, divided among its runs of layers in proportion."""
    order = plan.layers if kind == "F" else plan.layers[::-1]
    spans = [_half_seconds(x, kind) for x in order]
    scale = (end - start) / sum(spans) if any(spans) else 0.0
    events: list[Event] = []
    clock = start
    for layers, span in zip(order, spans, strict=True):
        if span:
            paths = [plan_path(plan, i) for i in range(layers.first, layers.last)]
            events.append(Event(1, kind, span_name(paths), clock, clock + span * scale))
        clock += span * scale
    return events


def _half_seconds(x: Layers, kind: str) -> float:
    each = x.forward_seconds if kind == "F" else x.backward_seconds
    return 0.0 if x.batch_only else each * (x.last - x.first)
