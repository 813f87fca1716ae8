"""The search: price every candidate of the space, take the fastest that fits."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, lcm

from msgspec.structs import replace

from ..ir.cluster import Cluster
from ..ir.errors import InfeasibleError, UsageError
from ..ir.grid import grid
from ..ir.model import Model
from ..ir.plan import Alternative, Layers, Memory, Plan, Prediction, Sharding, Stage
from ..ir.precision import PRECISIONS
from ..ir.strategy import ROLES, Strategy
from ..ir.tensor import ITEM_BYTES
from .blend import blend, fastest, floor, groups
from .candidate import Candidate, Decision
from .entries import Entries
from .evaluate import Evaluator
from .options import PlanOptions, optimizer_states
from .pins import decisions, pinned
from .sharding import GAP
from .space import Word, divisors, families, strategies, with_experts

BLENDED = 40  # groups at most
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
    candidates = Space(evaluator, options, budget).run()
    if not candidates:
        raise UsageError(
            f"no strategy splits {model.name} with global batch {model.batch} over "
            f"{cluster.devices} devices with roles {', '.join(options.roles)}"
            + "".join(f", pin {pin.glob}:{pin.strategy}" for pin in options.pins)
        )
    fitting = [c for c in candidates if c.peak_bytes <= budget]
    if not fitting:
        least = min(candidates, key=lambda c: c.peak_bytes)
        raise InfeasibleError(_shortfall(least, evaluator.stages(least), budget))
    best = min(fitting, key=_order)
    return assemble(evaluator, options, best, candidates, budget)


def _order(candidate: Candidate) -> tuple[float, int, str, int, str]:
    """Faster first; equal times: less memory, then a fixed order."""
    return (
        candidate.step_seconds,
        candidate.peak_bytes,
        candidate.word,
        candidate.micro_batches,
        candidate.memory,
    )


class Space:
    """The candidates of a model on a cluster, priced as they are met."""

    def __init__(self, evaluator: Evaluator, options: PlanOptions, budget: int) -> None:
        self.evaluator, self.options, self.budget = evaluator, options, budget
        self.cluster = evaluator.cluster
        entries = evaluator.entries
        useful = {r for r in options.roles if entries.has_experts or not ROLES[r].experts}
        useful = {r for r in useful if entries.has_tokens or not ROLES[r].sequence}
        self.roles = tuple(r for r in ROLES if r in useful)
        self.stages = sum(entries.functions[c.function].differentiable for c in evaluator.calls)
        self.found: list[Candidate] = []

    def run(self) -> list[Candidate]:
        """Every candidate of the space that the model can be split into."""
        if self.options.pins:
            self.pinned()
            return self.found
        best = [self.grow(family) for family in families(self.cluster, self.roles)]
        for word in dict.fromkeys(word for word in best if word is not None):
            self.grow(with_experts(self.cluster, self.roles, word))
        self.blend()
        return self.found

    def blend(self) -> None:
        """Mix the members of every group that may beat the fastest candidate that fits."""
        fitting = [c.step_seconds for c in self.found if c.peak_bytes <= self.budget]
        best = min(fitting, default=inf)
        hopeful = [group for group in groups(self.found) if fastest(group) < best]
        floors = [floor(self.evaluator, group, self.budget) for group in hopeful]
        order = sorted(range(len(hopeful)), key=floors.__getitem__)
        for number in order[:BLENDED]:
            if floors[number] >= best:
                break
            made = blend(self.evaluator, hopeful[number], self.budget)
            if made is not None:
                self.found.append(made)
                best = min(best, made.step_seconds)

    def pinned(self) -> None:
        """Every candidate that does what is pinned; layers that are not pinned share any strategy."""
        for pin in self.options.pins:
            if pin.strategy.devices != self.cluster.devices:
                raise UsageError(
                    f"pin {pin.strategy} is for {pin.strategy.devices} devices, the cluster has "
                    f"{self.cluster.devices}"
                )
        if len({pin.strategy.stages for pin in self.options.pins}) > 1:
            raise UsageError("pins must agree on pp: stages are the same for all layers")
        model, once = self.evaluator.model, self.evaluator.once
        pins = pinned(model, self.options.pins)
        words = dict.fromkeys(pin.strategy for i, pin in enumerate(pins) if pin and i not in once)
        free = any(pin is None for i, pin in enumerate(pins) if i not in once)
        if len(words) == 1 and not free and not any(pin.memory for pin in self.options.pins):
            self.found += self.candidates(*words)
            return
        for rest in self.like(next(iter(words))) if free else [next(iter(words))]:
            for memory in self.options.memory_actions:
                self.found += self.blends(decisions(model, pins, rest, memory))

    def like(self, strategy: Strategy) -> list[Strategy]:
        """The words of the space with as many stages."""
        return [
            found
            for family in families(self.cluster, self.roles)
            for word in family
            for found in strategies(self.cluster.devices, word, self.roles, self.stages)
            if found.stages == strategy.stages
        ]

    def blends(self, made: tuple[Decision, ...]) -> list[Candidate]:
        """Every number of micro-batches of these decisions."""
        ways = lcm(*(d.strategy.batch_ways() for d in made))
        batch = self.evaluator.global_batch
        if batch % ways:
            return []
        counts = divisors(batch // ways)
        if self.options.micro_batches is not None:
            counts = [self.options.micro_batches]
        found = (self.evaluator.blend(made, count) for count in counts)
        return [candidate for candidate in found if candidate is not None]

    def grow(self, family: list[Word]) -> Word | None:
        """Price the words of a family as long as a larger one helps, and give the best that fits.

        A larger axis sends more and computes less at a time; it pays where memory or the batch asks
        for it, so the first one that is no faster than a smaller one that fits is the last."""
        best, seconds = None, inf
        for word in family:
            made = [
                candidate
                for strategy in strategies(self.cluster.devices, word, self.roles, self.stages)
                for candidate in self.candidates(strategy)
            ]
            self.found += made
            fastest = min((c.step_seconds for c in made if c.peak_bytes <= self.budget), default=inf)
            if fastest < seconds:
                best, seconds = word, fastest
            elif seconds < inf:
                break
        return best

    def candidates(self, strategy: Strategy) -> list[Candidate]:
        """Every number of micro-batches and memory action of a word."""
        batch, ways = self.evaluator.global_batch, strategy.batch_ways()
        if batch % ways:
            return []
        counts = divisors(batch // ways)
        if self.options.micro_batches is not None:
            counts = [self.options.micro_batches]
        elif self.options.pins and strategy.stages == 1:
            counts = counts[:1]
        made = (
            self.evaluator.candidate(strategy, count, memory)
            for count in counts
            for memory in self.options.memory_actions
        )
        return [candidate for candidate in made if candidate is not None]


def _shortfall(candidate: Candidate, stages: Sequence[Stage], budget: int) -> str:
    stage = max(range(len(stages)), key=lambda s: stages[s].peak_bytes)
    terms = sorted(stages[stage].memory, key=lambda t: -t[1])
    peak = stages[stage].peak_bytes
    return (
        f"infeasible: the smallest plan found ({candidate.word}, {candidate.micro_batches} "
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
    mesh = grid([s.mesh for s in best.strategies])
    assert mesh is not None
    searched_splits = any(size > 1 for c in candidates for s in c.strategies for _, size in s.searched)
    return Plan(
        model=model.name,
        model_digest=model.fingerprint(),
        cluster=cluster,
        mesh=mesh,
        global_batch=model.batch,
        micro_batches=best.micro_batches,
        schedule=options.schedule,
        precision=options.precision or _precision(model),
        optimizer=evaluator.optimizer,
        budget_bytes=budget,
        stages=evaluator.stages(best),
        layers=layers,
        shardings=shardings,
        prediction=_prediction(evaluator, best),
        status="feasible" if searched_splits else "optimal",
        gap=GAP if searched_splits else 0.0,
        alternatives=tuple(
            Alternative(
                c.word, c.micro_batches, c.memory, c.step_seconds, c.peak_bytes,
                c.peak_bytes <= budget,
            )
            for c in others
        ),
        calls=tuple(call.path for call in model.calls),
        seed=options.seed,
    )  # fmt: skip


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
        memory: Memory = evaluator.variant(i, decision.memory)
        number, last = list(shardings).index(key), layers[-1] if layers else None
        if last and (last.sharding, last.memory) == (number, memory) and i not in bounds:
            layers[-1] = replace(last, last=i + 1)
            continue
        samples = evaluator.global_batch // decision.strategy.batch_ways()
        entry = entries.entry(call.function, decision.strategy.inside, samples // micro, memory)
        assert entry is not None
        seconds = entry.cost.forward.seconds, entry.cost.backward.seconds
        work = entries.amounts(call.function, decision.strategy.inside, samples // micro, memory)
        once = i in evaluator.once
        layers.append(Layers(i, i + 1, number, memory, *seconds, *work, once))
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
