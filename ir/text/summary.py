"""Summaries of a model and of a plan for people: a few lines each, which nothing reads back."""

from __future__ import annotations

from collections.abc import Iterator

from ..model.model import Call, Model
from ..plan.memory_action import MemoryAction
from ..plan.plan import Alternative, Layers, Plan
from ..plan.schedules.registry import schedule_text
from .units import count, gib, micro_batches, seconds

NAME_WIDTH = 32  # of a run of layers
AS_FAST = 0.01  # of a step: nearer plans are not known to differ


def model_summary(model: Model) -> str:
    """A model in a few lines: its inputs, calls and functions."""
    lines = [f"model {one_line(model.name)}  {contents(model)}  batch {model.batch}"]
    lines += [f"  input {i.name}: {i.type}" for i in model.inputs]
    lines += [f"  {line}" for line in _calls(model)]
    lines.append(f"  return {model.loss}")
    lines += [
        f"  function {f.name}  ×{calls_of(model, f.name)}  {len(f.ops)} operators "
        f"({f.forward} forward)"
        for f in model.functions
    ]
    return "\n".join(lines)


def contents(model: Model) -> str:
    """`8.03 B parameters  3 functions  34 calls`."""
    return (
        f"{count(parameters(model))} parameters  {len(model.functions)} functions  "
        f"{len(model.calls)} calls"
    )


def parameters(model: Model) -> int:
    return sum(p.type.elements for p in model.parameters if p.kind == "parameter")


def calls_of(model: Model, name: str) -> int:
    return sum(call.function == name for call in model.calls)


def one_line(text: str) -> str:
    """A name as data: printable, one line."""
    return text if text.isprintable() else repr(text)


def _calls(model: Model) -> Iterator[str]:
    """Calls, with runs of one function shortened after the second."""
    run: list[Call] = []
    for call in (*model.calls, None):
        if run and (call is None or call.function != run[0].function):
            calls = run if len(run) <= 3 else [run[0], run[-1]]
            for i, item in enumerate(calls):
                if i == 1 and len(run) > 3:
                    yield f"... × {len(run)}"
                args = ", ".join(item.arguments)
                path = f"  # {one_line(item.path)}" if item.path else ""
                yield f"{', '.join(item.results)} = {item.function}({args}){path}"
            run = []
        if call is not None:
            run.append(call)


def plan_summary(plan: Plan) -> str:
    """A plan in a screenful: the headline, each stage's runs of layers, what comes next best."""
    p, fullest = plan.prediction, fullest_stage(plan)
    peak, limit = plan.stages[fullest].peak_bytes, plan.memory_limit_of(fullest)
    lines = [
        f"plan for {one_line(plan.model)} on {plan.cluster.name} ({_devices(plan)})   "
        f"fits: {gib(peak)} of {gib(limit)}   {seconds(p.step_seconds)}/step   "
        f"{100 * p.mfu:.1f} % MFU",
        f"  strategy  {plan.strategy_text}   global batch {plan.global_batch}, "
        + ", ".join((micro_batches(plan.micro_batches), *_pipeline(plan))),
        f"  precision {plan.precision}, optimizer {plan.optimizer.name}"
        + (" on the host" if plan.optimizer.on_host else "")
        + (f", engine {plan.engine}" if plan.engine != "plait" else ""),
    ]
    lines += [f"  costs     {text}" for text in (costs_of_step(plan),) if text]
    lines += [
        f"  compress  {c.subject} over {c.role}: {c.program} ({c.strategy}), "
        + ("in torch" if c.subject == "rows" else f"{plan.cluster.device.kernel_language} kernels")
        for c in plan.compression
    ]
    lines += _groups(plan) if plan.groups else _stages(plan)
    terms = plan.stages[fullest].memory_terms
    lines.append(
        f"  memory    stage {fullest}: "
        + ", ".join(f"{name} {gib(amount)}" for name, amount in terms if amount)
    )
    host = max(stage.host_bytes for stage in plan.stages)
    if host:
        lines.append(f"  host      {gib(host)} of its memory for each device")
    lines += _alternatives(plan)
    searched = "in the searched space" if plan.complete else "when the search was stopped"
    lines.append(f"  {plan.status} {searched} under the cost model, gap {plan.gap:.2%}")
    return "\n".join(lines)


def _devices(plan: Plan) -> str:
    return f"{plan.mesh.size:,} device{'' if plan.mesh.size == 1 else 's'}"


def costs_of_step(plan: Plan) -> str:
    """`0.0123 dollars, 560 J a step`; empty where the cluster does not say what devices cost."""
    dollars, joules = plan.prediction.dollars_per_step, plan.prediction.joules_per_step
    parts = [] if dollars is None else [f"{dollars:.4g} dollars"]
    parts += [] if joules is None else [f"{joules:.4g} J"]
    return f"{', '.join(parts)} a step" if parts else ""


def schedule(plan: Plan) -> str:
    """`1f1b`, `interleaved ×4`."""
    return schedule_text(plan.schedule, plan.chunks_per_stage)


def _pipeline(plan: Plan) -> Iterator[str]:
    """How several stages take turns, and the share of the step that they wait."""
    if len(plan.stages) > 1:
        yield schedule(plan)
        yield f"bubble {100 * plan.prediction.bubble:.1f} %"


def _alternatives(plan: Plan) -> Iterator[str]:
    """The fastest that fits and was not taken, with the reason, and what comes next best."""
    step = plan.prediction.step_seconds
    fitting = [a for a in plan.alternatives if a.fits]
    faster = [a for a in fitting if a.step_seconds < step]
    slower = [a for a in fitting if a.step_seconds >= step]
    if faster:
        fastest = min(faster, key=lambda a: a.step_seconds)
        near = fastest.step_seconds >= step * (1 - AS_FAST)
        label, reason = (
            ("as fast", "too near to tell apart") if near else ("faster", "which was not asked for")
        )
        yield f"  {label:<9} {_alternative(plan, fastest)}, {reason}"
    if slower:
        yield "  next best " + "; ".join(_alternative(plan, a) for a in slower[:3])


def _alternative(plan: Plan, a: Alternative) -> str:
    slower = 100 * (a.step_seconds / plan.prediction.step_seconds - 1)
    return f"{a.name} ×{a.micro_batches} {a.memory} ({slower:+.1f} %)"


def fullest_stage(plan: Plan) -> int:
    """The stage whose devices use the largest part of their memory limit."""

    def share(stage: int) -> float:
        return plan.stages[stage].peak_bytes / plan.memory_limit_of(stage)

    return max(range(len(plan.stages)), key=share)


def group_line(plan: Plan, number: int) -> str:
    """A device group in a line: its ranks and devices, its share of the batch, its memory."""
    ranks, stage = plan.ranks_of(number), plan.stages[number]
    (first, last), count = stage.model_chunks[0], plan.micro_batches_of(number)
    span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}-{ranks[-1]}"
    return (
        f"{span}, {plan.cluster_of(number).device.kind}: calls {first}-{last - 1}, {count} of "
        f"{micro_batches(plan.micro_batches)}, {gib(stage.peak_bytes)} of "
        f"{gib(plan.memory_limit_of(number))}"
    )


def _groups(plan: Plan) -> Iterator[str]:
    """Every device group with its runs of layers; one that does what another does names it."""
    first: dict[tuple[str, ...], int] = {}
    for number in range(len(plan.stages)):
        ranks, _, does = group_line(plan, number).partition(", ")
        runs = [f"  {'':<9} {describe(plan, *run)}" for run in _runs(plan, number)]
        same = first.setdefault((does, *runs), number)
        if same < number:
            yield f"  stage {number:<3} {ranks}: as stage {same}"
        else:
            yield f"  stage {number:<3} {ranks}, {does}"
            yield from runs


def _stages(plan: Plan) -> Iterator[str]:
    """Runs of layers of every stage; stages that follow each other with equal runs as one."""
    by_stage = [list(_runs(plan, number)) for number in range(len(plan.stages))]
    texts = [[describe(plan, *run) for run in runs] for runs in by_stage]
    number = 0
    while number < len(texts):
        last = number
        while last + 1 < len(texts) and texts[last + 1] == texts[number]:
            last += 1
        label = f"stage {number}" if last == number else f"stage {number}-{last}"
        for i, (layers, times) in enumerate(by_stage[number]):
            text = describe(plan, layers, times, NAME_WIDTH - max(0, len(label) - 9) * (i == 0))
            yield f"  {label if i == 0 else '':<9} {text}"
        number = last + 1


def _runs(plan: Plan, number: int) -> Iterator[tuple[Layers, int]]:
    """Runs of layers of a stage with their numbers of calls; equal ones of several model chunks as
    one."""
    runs_by: dict[tuple[int, MemoryAction, float, float], list[Layers]] = {}
    for x in (x for x in plan.layers if plan.stage_of_layers(x) == number):
        key = x.sharding, x.memory, x.forward_seconds, x.backward_seconds
        runs_by.setdefault(key, []).append(x)
    for runs in runs_by.values():
        yield runs[0], sum(x.last - x.first for x in runs)


def describe(plan: Plan, layers: Layers, times: int, width: int = NAME_WIDTH) -> str:
    """A run of `times` calls in one line."""
    name = plan.shardings[layers.sharding].function
    span = f"{name} ×{times}" if times > 1 else name
    strategy = f"{plan.strategy_of(layers)!s:<20} " if len(plan.strategies) > 1 else ""
    return (
        f"{span:<{width}} {strategy}{layers.memory:<11} forward {seconds(layers.forward_seconds)}, "
        f"backward {seconds(layers.backward_seconds)} each"
    )
