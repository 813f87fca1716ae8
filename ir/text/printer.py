"""Text forms of a model and of a plan."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from ..model import Argument, Call, Function, Model, Op, Ref
from ..plan.memory_action import MemoryAction
from ..plan.plan import Layers, Plan, Stage

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def count(number: float) -> str:
    """8.03 B, 262 k."""
    for size, letter in UNITS:
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def gib(amount: float) -> str:
    return f"{amount / 2**30:.2f} GiB"


def size(amount: float) -> str:
    """1.5 GiB, 28.5 MiB, 12 B."""
    for unit, letter in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if amount >= unit:
            return f"{amount / unit:.3g} {letter}"
    return f"{amount:.3g} B"


def seconds(duration: float) -> str:
    """1.42 s, 3.1 ms, 12 µs."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if duration >= size:
            return f"{duration / size:.3g} {unit}"
    return f"{duration * 1e9:.3g} ns" if duration else "0 s"


def print_model(model: Model) -> str:
    """A model as a short program, its functions below."""
    lines = [headline(model)]
    lines += [f"  input {i.name}: {i.type}" for i in model.inputs]
    lines += [f"  {line}" for line in _calls(model)]
    lines.append(f"  return {model.loss}")
    for function in model.functions:
        lines += ["", *print_function(function, calls_of(model, function.name))]
    return "\n".join(lines)


def summary(model: Model) -> str:
    """A model in a few lines: its calls and its functions."""
    lines = print_model(replace(model, functions=())).splitlines()[:-1]
    lines[0] = headline(model)
    lines += [
        f"  function {f.name}  ×{calls_of(model, f.name)}  {len(f.ops)} operators "
        f"({f.forward} forward)"
        for f in model.functions
    ]
    return "\n".join(lines)


def headline(model: Model) -> str:
    return (
        f"model {one_line(model.name)}  {count(parameters(model))} parameters  "
        f"{len(model.functions)} functions  {len(model.calls)} calls  batch {model.batch}"
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


def print_function(function: Function, calls: int) -> list[str]:
    """A function: inputs, forward operators, and a count of its backward."""
    elements = sum(function.types[i.value].elements for i in function.state_inputs())
    lines = [f"function {function.name}  ×{calls}  {count(elements)} parameters"]
    lines += [
        f"  {i.kind} %{i.value} {one_line(i.name)}: {function.types[i.value]}"
        for i in function.inputs
    ]
    lines += [f"  {print_op(op, function)}" for op in function.forward_ops]
    lines.append("  return " + ", ".join(f"%{o.value}" for o in function.outputs))
    if function.differentiable:
        lines.append(f"  backward: {len(function.backward_ops)} operators")
        lines += [f"    {print_op(op, function)}" for op in function.backward_ops]
    return lines


def print_op(op: Op, function: Function) -> str:
    """`%3 = aten.mm.default %2 %1 : f32[8 4]`."""
    results = ", ".join(f"%{r}" if r >= 0 else "_" for r in op.results)
    arguments = [_argument(a) for a in op.args] + [
        f"{k}={_argument(a)}" for k, a in op.kwargs.items()
    ]
    types = ", ".join(str(function.types[r]) for r in op.results if r >= 0)
    return f"{results} = {op.target} {' '.join(arguments)} : {types}"


def _argument(argument: Argument) -> str:
    if isinstance(argument, Ref):
        return f"%{argument.value}"
    if isinstance(argument, tuple):
        return f"[{' '.join(_argument(a) for a in argument)}]"
    return str(argument)


def print_plan(plan: Plan) -> str:
    """A plan in a screenful: the headline, each stage's runs of layers, what comes next best."""
    p, peak = plan.prediction, plan.peak_bytes
    lines = [
        f"plan for {one_line(plan.model)} on {plan.cluster.name} ({plan.mesh.size} devices)   "
        f"fits: {gib(peak)} of {gib(plan.memory_limit_bytes)}   {seconds(p.step_seconds)}/step   "
        f"{100 * p.mfu:.1f} % MFU",
        f"  strategy  {plan.strategy_text}   global batch {plan.global_batch}, {plan.micro_batches} "
        f"micro-batches, {schedule(plan)}, bubble {100 * p.bubble:.1f} %",
        f"  precision {plan.precision}, optimizer {plan.optimizer.name}",
    ]
    lines += [
        f"  compress  {c.subject} over {c.role}: {c.program} ({c.strategy})"
        for c in plan.compression
    ]
    for number, stage in enumerate(plan.stages):
        lines += _stage(plan, number, stage)
    terms = plan.stages[_fullest(plan)].memory_terms
    lines.append(
        f"  memory    stage {_fullest(plan)}: "
        + ", ".join(f"{name} {gib(amount)}" for name, amount in terms if amount)
    )
    host = max(stage.host_bytes for stage in plan.stages)
    if host:
        lines.append(f"  host      {gib(host)} of its memory for each device")
    fitting = [a for a in plan.alternatives if a.fits][:3]
    if fitting:
        lines.append(
            "  next best "
            + "; ".join(
                _alternative(plan, a.name, a.micro_batches, a.memory, a.step_seconds)
                for a in fitting
            )
        )
    searched = "in the searched space" if plan.complete else "when the search was stopped"
    lines.append(f"  {plan.status} {searched} under the cost model, gap {plan.gap:.2%}")
    return "\n".join(lines)


def schedule(plan: Plan) -> str:
    """`1f1b`, `interleaved ×4`."""
    return plan.schedule + (f" ×{plan.chunks_per_stage}" if plan.chunks_per_stage > 1 else "")


def _alternative(plan: Plan, name: str, micro: int, memory: str, step: float) -> str:
    slower = 100 * (step / plan.prediction.step_seconds - 1)
    return f"{name} ×{micro} {memory} (+{slower:.1f} %)"


def _fullest(plan: Plan) -> int:
    return max(range(len(plan.stages)), key=lambda s: plan.stages[s].peak_bytes)


def _stage(plan: Plan, number: int, stage: Stage) -> Iterator[str]:
    """Runs of layers; equal runs of several model chunks as one."""
    groups: dict[tuple[int, MemoryAction, float, float], list[Layers]] = {}
    for x in (x for x in plan.layers if stage.contains(x.first)):
        groups.setdefault((x.sharding, x.memory, x.forward_seconds, x.backward_seconds), []).append(
            x
        )
    for i, runs in enumerate(groups.values()):
        label = f"stage {number}" if i == 0 else ""
        yield f"  {label:<9} {describe(plan, runs[0], sum(x.last - x.first for x in runs))}"


def describe(plan: Plan, layers: Layers, times: int) -> str:
    """A run of `times` calls in one line."""
    name = plan.shardings[layers.sharding].function
    span = f"{name} ×{times}" if times > 1 else name
    strategy = f"{plan.strategy_of(layers)!s:<20} " if len(plan.strategies) > 1 else ""
    return (
        f"{span:<32} {strategy}{layers.memory:<11} forward {seconds(layers.forward_seconds)}, "
        f"backward {seconds(layers.backward_seconds)} each"
    )
