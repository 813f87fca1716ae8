"""A candidate as a plan: runs of layers, stages, what is predicted, and the runners-up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from msgspec.structs import replace

from ...ir.lowering.cast import PRECISIONS
from ...ir.lowering.common_mesh import grid
from ...ir.model import Model
from ...ir.plan.plan import (
    DIVIDED,
    Alternative,
    Compressed,
    Layers,
    Memory,
    Plan,
    Prediction,
    Sharding,
)
from ...ir.plan.strategy import ROLES, Strategy
from ..candidate import Candidate
from ..pricing.candidate_pricer import Evaluator
from ..sharding import GAP
from .driver import Space

SHOWN = 12  # alternatives kept in a plan


def assemble(space: Space, best: Candidate) -> Plan:
    """The plan of a candidate, with the runners-up it beat."""
    evaluator, options, budget = space.evaluator, space.options, space.budget
    model, cluster, candidates = evaluator.model, evaluator.cluster, space.found
    shardings, layers = _layers(evaluator, best)
    divided = dict.fromkeys((x.sharding, x.memory) for x in layers if x.memory in DIVIDED)
    divisions = (evaluator.entries.division(shardings[n], memory) for n, memory in divided)
    others = sorted((c for c in candidates if c is not best), key=space.order)[:SHOWN]
    mesh = grid([s.mesh for s in best.strategies])
    assert mesh is not None
    searched_splits = any(
        size > 1 for c in candidates for s in c.strategies for _, size in s.searched
    )
    # a blend may be faster than all found, down to the bound; splits of operators to their own
    gap = max(GAP if searched_splits else 0.0, 1 - min(space.bound / best.step_seconds, 1.0))
    gap = unknown_gap(space, best) if space.clock.stopped else gap
    return Plan(
        model=model.name,
        model_digest=model.fingerprint(),
        cluster=cluster,
        mesh=mesh,
        global_batch=model.batch,
        micro_batches=best.micro_batches,
        schedule="interleaved" if best.chunks > 1 else "1f1b",
        precision=options.precision or _precision(model),
        optimizer=evaluator.optimizer,
        budget_bytes=budget,
        stages=evaluator.stages(best),
        layers=layers,
        shardings=shardings,
        prediction=_prediction(evaluator, best),
        status="optimal" if gap == 0 else "feasible",
        gap=gap,
        complete=not space.clock.stopped,
        compression=tuple(_compressed(evaluator, best)),
        divisions=tuple(dict.fromkeys(divisions)),
        alternatives=tuple(
            Alternative(
                c.word,
                c.micro_batches,
                c.memory,
                c.step_seconds,
                c.peak_bytes,
                c.peak_bytes <= budget,
                c.chunks,
            )
            for c in others
        ),
        calls=tuple(call.path for call in model.calls),
        seed=options.seed,
    )


def _compressed(evaluator: Evaluator, best: Candidate) -> Iterator[Compressed]:
    """What travels compressed, by strategy; values between stages by the first one's entry."""
    for strategy in best.strategies:
        for (subject, role), program in evaluator.axes(strategy).compression.items():
            yield Compressed(strategy, role, subject, program.name)
        samples = evaluator.global_batch // strategy.batch_ways() // best.micro_batches
        entries = evaluator.entries
        sums = entries.activations.reductions(entries, strategy.inside, samples)
        for role, program in sums.programs.items() if sums is not None else ():
            yield Compressed(strategy, role, "activations", program.name)
    hop = evaluator.hop_program_of(best.decisions, best.micro_batches)
    if hop is not None:
        first = best.strategies[0]
        stages = next(role for role, _ in first.axes if ROLES[role].stages)
        yield Compressed(first, stages, "activations", hop.name)


def unknown_gap(space: Space, best: Candidate) -> float:
    """How far a plan may be from the best one of a space that was not searched to its end: from a
    step in which all devices do nothing but compute, as fast as they can."""
    least = _flops(space.evaluator) / _peak_flops(space.evaluator)
    return max(0.0, 1 - least / best.step_seconds)


def _precision(model: Model) -> str:
    dtype = next((p.type.dtype for p in model.parameters if p.trainable), "float32")
    return next(name for name, kind in PRECISIONS.items() if kind == dtype)


def _layers(
    evaluator: Evaluator, best: Candidate
) -> tuple[tuple[Sharding, ...], tuple[Layers, ...]]:
    """Runs of calls with one function, stage and decision; a sharding per function and strategy."""
    entries, calls = evaluator.entries, evaluator.calls
    shardings: dict[tuple[str, Strategy], Sharding] = {}
    layers: list[Layers] = []
    bounds = set(best.bounds)
    for i, call in enumerate(calls):
        micro, decision = 1 if i in evaluator.once else best.micro_batches, best.at(i)
        key = call.function, decision.strategy
        if key not in shardings:
            sharding = entries.sharding(*key, micro)
            assert sharding is not None
            shardings[key] = sharding
        samples = evaluator.global_batch // decision.strategy.batch_ways() // micro
        inside = decision.strategy.inside
        memory: Memory = evaluator.prices.variant(i, decision.memory, inside, samples)
        number, last = list(shardings).index(key), layers[-1] if layers else None
        if last and (last.sharding, last.memory) == (number, memory) and i not in bounds:
            layers[-1] = replace(last, last=i + 1)
            continue
        entry = entries.entry(call.function, inside, samples, memory)
        assert entry is not None
        seconds = entry.cost.forward.seconds, entry.cost.backward.seconds
        work = entries.amounts(call.function, inside, samples, memory)
        once = i in evaluator.once
        saved = entries.saved(shardings[key], inside, samples, memory)
        makers = entries.makers(shardings[key], saved) if saved else ()
        layers.append(Layers(i, i + 1, number, memory, *seconds, *work, once, saved, makers))
    return tuple(shardings.values()), tuple(layers)


def _prediction(evaluator: Evaluator, best: Candidate) -> Prediction:
    model, flops = evaluator.model, _flops(evaluator)
    tokens = max((i.type.elements for i in model.inputs if i.batched), default=model.batch)
    step = best.step_seconds
    mfu = flops / step / _peak_flops(evaluator)
    return Prediction(step, tokens / step, model.batch / step, mfu, best.bubble, flops)


def _peak_flops(evaluator: Evaluator) -> float:
    """flop/s of all devices in the model's type."""
    parameters, cluster = evaluator.model.parameters, evaluator.cluster
    dtype = parameters[0].type.dtype if parameters else "float32"
    return cluster.device.peak(dtype) * cluster.devices


def _flops(evaluator: Evaluator) -> float:
    """Floating-point operations of a step."""
    counts = Counter(call.function for call in evaluator.model.calls)
    total = 0.0
    for name, count in counts.items():
        entry = evaluator.entries.entry(name, (), evaluator.model.batch, "keep")
        total += count * (entry.cost.forward.flops + entry.cost.backward.flops) if entry else 0.0
    return total
