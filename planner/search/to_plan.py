"""Turns a candidate into a plan: runs of layers, stages, prediction and runners-up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from ...ir.files.json_files import digest
from ...ir.lowering.cast import precision_of
from ...ir.model.mesh import common_mesh
from ...ir.model.model import Function
from ...ir.passes import Observer, Pass, run
from ...ir.plan.family import family
from ...ir.plan.plan import Alternative, CompressionChoice, Layers, Plan, Prediction
from ...ir.plan.sharding import Sharding
from ...ir.plan.strategy import ROLES, Strategy
from ..layers.priced_layers import append_run, priced_layers
from ..pricing.candidate_pricer import CandidatePricer
from ..pricing.function_prices import FunctionPrices
from ..question.candidate import CallPoint, Candidate
from ..question.ranking import ranked
from ..sharding import GAP
from .driver import SearchSpace

SHOWN = 12  # alternatives kept in a plan


class Shard(Pass[Function, Sharding], frozen=True):
    """Look up how a function is sharded under a strategy, for a number of micro-batches."""

    prices: FunctionPrices
    strategy: Strategy
    micro_batches: int
    name = "sharding"

    def apply(self, value: Function) -> Sharding:
        sharding = self.prices.sharding(value.name, self.strategy, self.micro_batches)
        assert sharding is not None, "a candidate's functions have shardings"
        return sharding


def assemble(space: SearchSpace, best: Candidate, observer: Observer | None = None) -> Plan:
    """The plan of a candidate, with its runners-up as alternatives."""
    pricer, options, memory_limit_bytes = space.pricer, space.options, space.memory_limit_bytes
    model, cluster, candidates = pricer.model, pricer.cluster, space.candidates
    shardings, layers = _layers(pricer, best, observer)
    chunked = dict.fromkeys((x.sharding, x.memory) for x in layers if x.memory.chunked)
    chunkings = (pricer.function_prices.chunking(shardings[n], memory) for n, memory in chunked)
    others = ranked((c for c in candidates if c is not best), memory_limit_bytes)
    mesh = common_mesh([s.mesh for s in best.strategies])
    assert mesh is not None
    searched_splits = any(
        size > 1 for c in candidates for s in c.strategies for _, size in s.searched_axes
    )
    # a mix may be faster, down to its bound; operator shardings are optimal up to theirs
    gap = max(
        GAP if searched_splits else 0.0, 1 - min(space.mix_lower_bound / best.step_seconds, 1.0)
    )
    gap = max(gap, 1 - min(space.best_seconds / best.step_seconds, 1.0))
    gap = unknown_gap(space, best) if space.deadline.stopped else gap
    return Plan(
        model=model.name,
        model_digest=model.fingerprint(),
        cluster=cluster,
        mesh=mesh,
        global_batch=model.batch,
        micro_batches=best.micro_batches,
        schedule=best.schedule,
        precision=options.precision or precision_of(model.parameters),
        optimizer=pricer.optimizer,
        memory_limit_bytes=memory_limit_bytes,
        stages=pricer.stages(best),
        layers=layers,
        shardings=shardings,
        prediction=_prediction(pricer, best),
        status="optimal" if gap == 0 else "feasible",
        gap=gap,
        complete=not space.deadline.stopped,
        compression=tuple(_compressed(pricer, best)),
        chunkings=tuple(dict.fromkeys(chunkings)),
        gradient_precision=options.gradient_precision,
        expert_slots=options.expert_slots,
        alternatives=tuple(alternative(c, memory_limit_bytes) for c in islice(others, SHOWN)),
        calls=tuple(call.path for call in model.calls),
        cluster_digest=digest(cluster),
        seed=options.seed,
        engine=options.engine,
    )


def alternative(candidate: Candidate, memory_limit_bytes: int) -> Alternative:
    """A candidate in a row of figures."""
    return Alternative(
        candidate.strategy_text,
        candidate.micro_batches,
        candidate.memory_text,
        candidate.step_seconds,
        candidate.peak_bytes,
        candidate.peak_bytes <= memory_limit_bytes,
        candidate.model_chunks,
        candidate.schedule,
        family(candidate.strategies),
    )


def _compressed(pricer: CandidatePricer, best: Candidate) -> Iterator[CompressionChoice]:
    """Compressed communication by strategy; stage transfers belong to the first strategy."""
    for strategy in best.strategies:
        axes = pricer.stage_pricer.batch_axes(strategy)
        for (payload, role), program in axes.compression.items():
            yield CompressionChoice(strategy, role, payload, program.name)
        rows = pricer.function_prices.activations.rows
        for role, size in strategy.axes:
            if rows is not None and ROLES[role].experts and size > 1:
                yield CompressionChoice(strategy, role, "rows", rows.name)
        samples = pricer.point(strategy, best.micro_batches).samples_per_device
        reductions = pricer.function_prices.reductions.choose(strategy.model_axes, samples)
        for role, program in reductions.programs.items() if reductions is not None else ():
            yield CompressionChoice(strategy, role, "activations", program.name)
    transfer_program = pricer.transfer_prices.program(best.assignment.first_point.replica)
    if transfer_program is not None:
        first = best.strategies[0]
        stages = next(role for role, _ in first.axes if ROLES[role].stages)
        yield CompressionChoice(first, stages, "activations", transfer_program.name)


def unknown_gap(space: SearchSpace, best: Candidate) -> float:
    """Gap of a plan whose space was not searched to its end."""
    return max(0.0, 1 - least_seconds(space.pricer) / best.step_seconds)


def least_seconds(pricer: CandidatePricer) -> float:
    """A lower bound of every plan's step: all devices compute at peak rate, and nothing else is done."""
    return _flops(pricer) / _peak_flops(pricer)


def _layers(
    pricer: CandidatePricer, best: Candidate, observer: Observer | None
) -> tuple[tuple[Sharding, ...], tuple[Layers, ...]]:
    """Runs of calls with one function, stage and decision; a sharding per function and strategy."""
    function_prices, calls = pricer.function_prices, pricer.calls
    shardings: dict[tuple[str, Strategy], Sharding] = {}
    layers: list[Layers] = []
    bounds = set(best.bounds)
    for i, call in enumerate(calls):
        decision, batch_only = best.assignment.at(i), i in pricer.batch_only
        key = call.function, decision.strategy
        if key not in shardings:
            step = Shard(
                function_prices, decision.strategy, 1 if batch_only else best.micro_batches
            )
            shardings[key] = run(step, function_prices.functions[call.function], observer)
        replica = best.assignment.point(decision).replica
        point = pricer.call_prices.call_point(i, replica.call_point(per_step=batch_only))
        number = list(shardings).index(key)
        run_of_call = priced_layers(pricer, i, shardings[key], number, point)
        append_run(layers, run_of_call, apart=i in bounds)
    return tuple(shardings.values()), tuple(layers)


def _prediction(pricer: CandidatePricer, best: Candidate) -> Prediction:
    model, flops = pricer.model, _flops(pricer)
    step = best.step_seconds
    mfu = flops / step / _peak_flops(pricer)
    return Prediction(step, model.tokens / step, model.batch / step, mfu, best.bubble, flops)


def _peak_flops(pricer: CandidatePricer) -> float:
    """flop/s of all devices in the model's type."""
    parameters, cluster = pricer.model.parameters, pricer.cluster
    dtype = parameters[0].type.dtype if parameters else "float32"
    return cluster.device.peak(dtype) * cluster.devices


def _flops(pricer: CandidatePricer) -> float:
    """Floating-point operations of a step."""
    counts = Counter(call.function for call in pricer.model.calls)
    total = 0.0
    for name, count in counts.items():
        price = pricer.function_prices.call_price(name, CallPoint((), pricer.model.batch))
        total += count * (price.cost.forward.flops + price.cost.backward.flops) if price else 0.0
    return total
