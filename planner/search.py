"""The search: price every candidate of the space, take the fastest that fits."""

from __future__ import annotations

from ..ir.cluster import Cluster
from ..ir.errors import InfeasibleError, UsageError
from ..ir.mesh import Axis, Mesh
from ..ir.model import Model
from ..ir.plan import Alternative, Layers, Memory, Plan, Prediction, Sharding
from ..ir.precision import PRECISIONS
from ..ir.strategy import ROLES, Strategy
from ..ir.tensor import ITEM_BYTES
from .entries import Entries
from .evaluate import Candidate, Evaluator
from .options import PlanOptions, optimizer_states
from .sharding import GAP
from .space import divisors, strategies

SHOWN = 12  # alternatives kept in a plan


def plan(model: Model, cluster: Cluster, options: PlanOptions) -> Plan:
    """The fastest plan that fits, under the cost model.

    Raises InfeasibleError (nothing fits: names the device, term and shortfall) and UsageError.
    """
    options.check()
    item = _item_bytes(model)
    optimizer = optimizer_states(options.optimizer, item < 4, item)
    evaluator = Evaluator(Entries(model, cluster), model.batch, optimizer)
    budget = options.memory_bytes or cluster.device.memory_bytes
    candidates = search(evaluator, options)
    if not candidates:
        raise UsageError(
            f"no strategy splits {model.name} with global batch {model.batch} over "
            f"{cluster.devices} devices with roles {', '.join(options.roles)}"
            + (f" and pin {options.pin}" if options.pin else "")
        )
    fitting = [c for c in candidates if c.peak_bytes <= budget]
    if not fitting:
        raise InfeasibleError(_shortfall(min(candidates, key=lambda c: c.peak_bytes), budget))
    best = min(fitting, key=_order)
    return assemble(evaluator, options, best, candidates, budget)


def _order(candidate: Candidate) -> tuple[float, int, str, int, str]:
    """Faster first; equal times: less memory, then a fixed order."""
    return (
        candidate.step_seconds,
        candidate.peak_bytes,
        str(candidate.strategy),
        candidate.micro_batches,
        candidate.memory,
    )


def search(evaluator: Evaluator, options: PlanOptions) -> list[Candidate]:
    """Every candidate of the space that the model can be split into."""
    found = []
    for strategy in _words(evaluator, options):
        if evaluator.global_batch % strategy.batch_ways():
            continue
        per_rank = evaluator.global_batch // strategy.batch_ways()
        counts = divisors(per_rank)
        if options.micro_batches is not None:
            counts = [options.micro_batches]
        elif options.pin is not None and strategy.stages == 1:
            counts = counts[:1]
        for micro_batches in counts:
            for memory in options.memory_actions:
                made = evaluator.candidate(strategy, micro_batches, memory)
                if made is not None:
                    found.append(made)
    return found


def _words(evaluator: Evaluator, options: PlanOptions) -> list[Strategy]:
    devices = evaluator.cluster.devices
    if options.pin is not None:
        if options.pin.devices != devices:
            raise UsageError(
                f"pin {options.pin} is for {options.pin.devices} devices, the cluster has {devices}"
            )
        return [options.pin]
    stages = sum(evaluator.entries.functions[c.function].differentiable for c in evaluator.calls)
    entries = evaluator.entries
    roles = {r for r in options.roles if entries.has_experts or not ROLES[r].experts}
    roles = {r for r in roles if entries.has_tokens or not ROLES[r].sequence}
    return list(strategies(evaluator.cluster, tuple(r for r in ROLES if r in roles), stages))


def _shortfall(candidate: Candidate, budget: int) -> str:
    stage = max(range(len(candidate.stages)), key=lambda s: candidate.stages[s].peak_bytes)
    terms = sorted(candidate.stages[stage].memory, key=lambda t: -t[1])
    peak = candidate.stages[stage].peak_bytes
    return (
        f"infeasible: the smallest plan found ({candidate.strategy}, {candidate.micro_batches} "
        f"micro-batches, {candidate.memory}) needs {peak / 2**30:.2f} GiB on stage {stage}, has "
        f"{budget / 2**30:.2f} GiB; "
        + ", ".join(f"{name} {amount / 2**30:.2f}" for name, amount in terms[:4])
        + f"; raise the budget by {(peak - budget) / 2**30:.2f} GiB, use more devices, or a smaller"
        " batch per device"
    )


def _item_bytes(model: Model) -> int:
    return max((ITEM_BYTES[p.type.dtype] for p in model.parameters if p.trainable), default=4)


def assemble(
    evaluator: Evaluator,
    options: PlanOptions,
    best: Candidate,
    candidates: list[Candidate],
    budget: int,
) -> Plan:
    """The plan of a candidate, with the runners-up it beat."""
    model, cluster = evaluator.model, evaluator.cluster
    shardings, layers = _layers(evaluator, best)
    others = sorted(
        (c for c in candidates if c is not best), key=lambda c: (c.peak_bytes > budget, _order(c))
    )[:SHOWN]
    axes = best.strategy.axes or (("dp", 1),)
    searched_splits = any(size > 1 for c in candidates for _, size in c.strategy.searched)
    return Plan(
        model=model.name,
        model_digest=model.fingerprint(),
        cluster=cluster,
        mesh=Mesh(tuple(Axis(role, size) for role, size in axes)),
        strategy=best.strategy,
        global_batch=model.batch,
        micro_batches=best.micro_batches,
        schedule=options.schedule,
        precision=options.precision or _precision(model),
        optimizer=evaluator.optimizer,
        budget_bytes=budget,
        stages=best.stages,
        layers=layers,
        shardings=shardings,
        prediction=_prediction(evaluator, best),
        status="feasible" if searched_splits else "optimal",
        gap=GAP if searched_splits else 0.0,
        alternatives=tuple(
            Alternative(
                str(c.strategy), c.micro_batches, c.memory, c.step_seconds, c.peak_bytes,
                c.peak_bytes <= budget,
            )
            for c in others
        ),
        seed=options.seed,
    )  # fmt: skip


def _precision(model: Model) -> str:
    dtype = next((p.type.dtype for p in model.parameters if p.trainable), "float32")
    return next(name for name, kind in PRECISIONS.items() if kind == dtype)


def _layers(
    evaluator: Evaluator, best: Candidate
) -> tuple[tuple[Sharding, ...], tuple[Layers, ...]]:
    """Runs of calls with one function, stage and decision; one sharding per function."""
    entries, calls = evaluator.entries, evaluator.calls
    shardings: dict[str, Sharding] = {}
    layers: list[Layers] = []
    bounds = {stage.first for stage in best.stages}
    batch = evaluator.global_batch // best.strategy.batch_ways()
    for i, call in enumerate(calls):
        micro = 1 if i in evaluator.once else best.micro_batches
        if call.function not in shardings:
            sharding = entries.sharding(call.function, best.strategy, micro)
            assert sharding is not None
            shardings[call.function] = sharding
        memory: Memory = evaluator.variant(i, best.memory)
        number = list(shardings).index(call.function)
        if layers and layers[-1].sharding == number and i not in bounds:
            last = layers[-1]
            layers[-1] = Layers(
                last.first, i + 1, number, memory, last.forward_seconds, last.backward_seconds
            )
            continue
        entry = entries.entry(call.function, best.strategy.inside, batch // micro, memory)
        assert entry is not None
        seconds = entry.cost.forward.seconds, entry.cost.backward.seconds
        layers.append(Layers(i, i + 1, number, memory, *seconds))
    return tuple(shardings.values()), tuple(layers)


def _prediction(evaluator: Evaluator, best: Candidate) -> Prediction:
    model, cluster = evaluator.model, evaluator.cluster
    flops = 0.0
    for call in model.calls:
        entry = evaluator.entries.entry(call.function, (), model.batch, "keep")
        flops += (entry.cost.forward.flops + entry.cost.backward.flops) if entry else 0.0
    tokens = max((i.type.elements for i in model.inputs if i.batched), default=model.batch)
    dtype = model.parameters[0].type.dtype if model.parameters else "float32"
    peak = cluster.device.peak(dtype) * cluster.devices
    step = best.step_seconds
    return Prediction(
        step, tokens / step, model.batch / step, flops / step / peak, best.bubble, flops
    )
