"""The search: prices candidates of the space until all are priced or time is up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from math import inf, lcm
from typing import Any

from msgspec.structs import replace

from ...cost_model.explain.confidence import CLOSE
from ...ir.devices.cluster import Cluster
from ...ir.errors import UsageError
from ...ir.model.model import Model
from ...ir.plan.strategy import ROLES, Strategy
from ..activations.ladder import base_actions, memory_saving_candidates
from ..compression.optimizers import allowed_roles
from ..compression.optimizers import check_strategies as check_optimizer
from ..layers.mix import LayerMix, groups
from ..pricing.candidate_pricer import CandidatePricer
from ..question.candidate import Assignment, Candidate, Decision, RunPoint
from ..question.deadline import Deadline, Watch, unwatched
from ..question.options import PlanOptions
from ..question.pins import check_pins, pin_per_call, pinned_decisions
from ..question.ranking import fitting
from ..question.strategy_space import ModelAxes, axis_families, divisors, strategies, with_experts
from ..sharding.engine_styles import refusal
from .price_cache import PriceCache
from .schedule_choice import (
    MOST_CHUNKS,
    chunk_counts,
    refuse,
    required,
    schedules_beside,
    seconds_without_bubble,
    suits,
    trials,
)

MOST_MIXES = 40  # groups of candidates, at most
SLOW_FACTOR = 1.25  # times the best step: slower candidates are not among the runners-up
LARGE_CLUSTER = 1024  # devices: price the widest axes first, so that most others are skipped
PATIENCE = 2  # sizes of an axis in a row that do not help


class SearchSpace:
    """The candidates of a model on a cluster, priced one after the other."""

    def __init__(
        self,
        pricer: CandidatePricer,
        options: PlanOptions,
        memory_limit_bytes: int,
        prices: PriceCache | None = None,
    ) -> None:
        self.pricer, self.options, self.memory_limit_bytes = pricer, options, memory_limit_bytes
        self.prices = prices or PriceCache()
        self.cluster = pricer.cluster
        function_prices = pricer.function_prices
        demand = pricer.optimizer.demand
        check_optimizer(
            (pin.strategy for pin in options.pins), options.optimizer, options.compress, demand
        )
        self.engine = options.target
        usable_roles = allowed_roles(options.roles, options.optimizer, demand)
        usable_roles = {r for r in usable_roles if r in self.engine.roles}
        usable_roles = {
            r for r in usable_roles if function_prices.shardings.has_experts or not ROLES[r].experts
        }
        usable_roles = {
            r for r in usable_roles if function_prices.values.has_tokens or not ROLES[r].sequence
        }
        self.roles = tuple(r for r in ROLES if r in usable_roles)
        self.stages = sum(
            function_prices.functions[c.function].differentiable for c in pricer.calls
        )
        self.candidates: list[Candidate] = []
        self.seconds_by_axes: dict[ModelAxes, float] = {}  # of the fastest that fits
        self.best_seconds = inf  # seconds of the fastest so far that fits
        self.watch: Watch = unwatched  # is told them when they fall
        self.mix_lower_bound = inf  # seconds that no layer-wise mix is below
        self.slow_factor = SLOW_FACTOR
        self.deadline = Deadline(options.time_limit_seconds)

    @staticmethod
    def create(
        model: Model, cluster: Cluster, options: PlanOptions, prices: PriceCache | None = None
    ) -> SearchSpace:
        """The space that these options allow, with the prices that there are; raises UsageError for
        invalid options."""
        options.check()
        prices = prices or PriceCache()
        pricer = prices.pricer(model, cluster, options)
        memory_limit_bytes = options.memory_limit(cluster.device.memory_bytes)
        return SearchSpace(pricer, options, memory_limit_bytes, prices)

    def with_options(self, cluster: Cluster | None = None, **changes: Any) -> SearchSpace:
        """The space of the same model under changed options, or on another cluster."""
        options = replace(self.options, **changes)
        if cluster in (None, self.cluster) and not changes.keys() & {"engine", "optimizer_on"}:
            memory_limit_bytes = options.memory_limit(self.cluster.device.memory_bytes)
            return SearchSpace(self.pricer, options, memory_limit_bytes, self.prices)
        return SearchSpace.create(self.pricer.model, cluster or self.cluster, options, self.prices)

    @property
    def best(self) -> Candidate | None:
        """The fastest candidate that fits."""
        return next(fitting(self.candidates, self.memory_limit_bytes), None)

    def run(self) -> list[Candidate]:
        """Price the candidates of the space until all are priced, time is up, or Ctrl-C is pressed."""
        try:
            self.search()
        except KeyboardInterrupt:
            if not self.candidates:
                raise
            self.deadline.stop()
        return self.candidates

    def search(self) -> None:
        """Price pinned candidates, or grow every family of model axes; then mix layers."""
        if self.options.pins:
            self.price_pinned()
            self.update_best(self.candidates)
            pinned = self.candidates
            self.candidates = self.add_schedules(pinned)
            if pinned and not self.candidates:
                refuse(self.options, pinned, self.stages)
            if all(pin.memory for pin in self.options.pins):
                return
            self.add_memory_actions()
            self.mix_layers(self.candidates)
            return
        families = axis_families(self.cluster, self.roles)
        if self.cluster.devices > LARGE_CLUSTER:
            for model_axes in dict.fromkeys(family[-1] for family in families):
                self.price_axes(model_axes)
        best_axes = [self.grow_family(family) for family in families]
        for model_axes in dict.fromkeys(
            model_axes for model_axes in best_axes if model_axes is not None
        ):
            self.grow_family(with_experts(self.cluster, self.roles, model_axes))
        if not required(self.options):  # late: most lower bounds are above what is known by now
            self.candidates = self.add_schedules(self.candidates)
        self.add_memory_actions()
        self.mix_layers(self.candidates)

    def add_schedules(self, candidates: list[Candidate]) -> list[Candidate]:
        """Add candidates under other schedules whose lower bound beats the fastest that fits.

        A schedule that is asked for replaces 1F1B.
        """
        names, demanded = schedules_beside(self.options), required(self.options)
        if not names or self.options.model_chunks:
            return candidates
        added = [c for c in candidates if not demanded or c.strategies[0].stages == 1]
        limit = (lambda: inf) if demanded else lambda: self.best_seconds
        for trial in trials(candidates, names, self.able, limit):
            if self.deadline.passed():
                break
            added += self.under(trial.candidates, trial.schedule, demanded)
        return added

    def update_best(self, candidates: Sequence[Candidate]) -> float:
        """Seconds of the fastest so far that fits, these candidates among them."""
        faster = [c for c in candidates if c.step_seconds < self.best_seconds]
        for candidate in islice(fitting(faster, self.memory_limit_bytes), 1):
            self.best_seconds = candidate.step_seconds
            self.watch(self.best_seconds, 0.0)
        return self.best_seconds

    def able(self, candidate: Candidate, schedule: str) -> bool:
        """Whether the engine runs a candidate under a schedule."""
        return not self.engine.schedule_refusal(candidate.strategies[0], schedule)

    def under(
        self, group: Sequence[Candidate], schedule: str, demanded: bool
    ) -> Iterator[Candidate]:
        """Candidates of one split under a schedule in all numbers of model chunks that may give the
        fastest."""
        split = group[0].strategies[0].stages, group[0].micro_batches
        for chunks in reversed([*chunk_counts(schedule, *split, self.stages)]):
            fast = [
                c
                for c in group
                if demanded or seconds_without_bubble(c, [schedule], chunks) < self.best_seconds
            ]
            if not fast:
                return
            for candidate in fast if demanded else self.promising(fast, schedule, chunks):
                assignment = replace(candidate.assignment, model_chunks=chunks, schedule=schedule)
                scheduled = self.pricer.balanced(assignment)
                if scheduled is not None:
                    self.update_best([scheduled])
                    yield scheduled

    def promising(
        self, group: Sequence[Candidate], schedule: str, chunks: int
    ) -> Sequence[Candidate]:
        """Candidates of one split that are worth a simulation under a schedule: all that suit it where
        one beats the fastest that fits, as layers may be mixed from them, else those about as fast."""

        def within(limit: float) -> Iterator[Candidate]:
            for least_seconds, point, candidate in bounds:
                if least_seconds < limit and suitable(candidate) and seconds(point) < limit:
                    yield candidate

        def suitable(candidate: Candidate) -> bool:
            return suits(candidate, schedule, self.memory_limit_bytes)

        if any(len(candidate.decisions) > 1 for candidate in group):
            return [*filter(suitable, group)]
        close = (CLOSE if self.slow_factor < inf else inf) * self.best_seconds
        seconds, firsts = self.pricer.step_seconds, [c.assignment.first_point for c in group]
        points = [replace(p, model_chunks=chunks, schedule=schedule) for p in firsts]
        bounds = [*zip(map(self.pricer.least_seconds, points), points, group, strict=True)]
        faster = next(within(self.best_seconds), None)
        return [*(within(close) if faster is None else filter(suitable, group))]

    def add_memory_actions(self) -> None:
        """Add candidates with memory actions other than keep and recompute."""
        self.candidates += memory_saving_candidates(
            self.candidates,
            self.memory_limit_bytes,
            self.pricer.candidate,
            self.options.engine_actions,
            self.deadline,
            self.engine.allows_action,
        )

    def mix_layers(self, candidates: list[Candidate]) -> None:
        """Add layer-wise mixes of every group of candidates that may beat the fastest that fits."""
        best_seconds = self.update_best(candidates)
        if self.engine.mixes == "none":
            return
        fractions = self.options.fractions if self.engine.extras else ()
        mixes = [
            (mix.lower_bound(self.memory_limit_bytes), number, mix)
            for number, group in enumerate(
                groups(candidates, best_seconds, self.engine.mixes == "memory")
            )
            if not self.deadline.passed()
            for mix in [LayerMix(self.pricer, group, fractions)]
        ]
        self.mix_lower_bound = min((lower_bound for lower_bound, *_ in mixes), default=inf)
        for lower_bound, _, mix in sorted(mixes)[:MOST_MIXES]:
            if lower_bound >= best_seconds or self.deadline.passed():
                break
            self.watch(best_seconds, lower_bound)
            candidate = mix.best(self.memory_limit_bytes, best_seconds)
            if candidate is not None and candidate not in candidates:
                candidates.append(candidate)
                best_seconds = min(best_seconds, candidate.step_seconds)

    def price_pinned(self) -> None:
        """Price every candidate with the pinned decisions; other layers share any strategy.

        Raises UsageError for pins for another number of devices, that disagree on stages, or that the
        engine cannot run.
        """
        check_pins(self.options.pins, self.cluster.devices)
        for pin in self.options.pins:
            if (reason := self.refusal(pin.strategy)) is not None:
                raise UsageError(reason)
        model, batch_only = self.pricer.model, self.pricer.batch_only
        pins = pin_per_call(model, self.options.pins)
        strategies = dict.fromkeys(
            pin.strategy for i, pin in enumerate(pins) if pin and i not in batch_only
        )
        some_unpinned = any(pin is None for i, pin in enumerate(pins) if i not in batch_only)
        if (
            len(strategies) == 1
            and not some_unpinned
            and not any(pin.memory for pin in self.options.pins)
        ):
            self.candidates += self.uniform_candidates(next(iter(strategies)))
            return
        for unpinned in (
            self.strategies_with_stages(next(iter(strategies)))
            if some_unpinned
            else [next(iter(strategies))]
        ):
            for memory in base_actions(self.options.engine_actions):
                self.candidates += self.mixed_candidates(
                    pinned_decisions(model, pins, unpinned, memory)
                )

    def strategies(self, model_axes: ModelAxes) -> Iterator[Strategy]:
        """Strategies with these model axes that the engine can run."""
        for strategy in strategies(self.cluster.devices, model_axes, self.roles, self.stages):
            if self.refusal(strategy) is None:
                yield strategy

    def refusal(self, strategy: Strategy) -> str | None:
        """Why the engine cannot run a strategy for this model; None where it can."""
        return refusal(self.engine, strategy, self.pricer.function_prices.shardings)

    def strategies_with_stages(self, strategy: Strategy) -> list[Strategy]:
        """Strategies of the space with as many stages as this one."""
        return [
            candidate
            for family in axis_families(self.cluster, self.roles)
            for model_axes in family
            for candidate in self.strategies(model_axes)
            if candidate.stages == strategy.stages
        ]

    def mixed_candidates(self, decisions: tuple[Decision, ...]) -> list[Candidate]:
        """Candidates of these decisions for every number of micro-batches."""
        micro_batch_counts = self.micro_batch_counts(
            lcm(*(d.strategy.batch_degree() for d in decisions))
        )
        bounds, chunks = self.options.bounds, self.options.model_chunks or 1
        schedule = "interleaved" if chunks > 1 else "1f1b"
        assignments = (
            Assignment(decisions, self.pricer.global_batch, n, chunks, schedule)
            for n in micro_batch_counts
        )
        candidates = (
            self.pricer.mixed(assignment, bounds)
            if bounds
            else self.pricer.mixed_balanced(assignment)
            for assignment in assignments
        )
        return [candidate for candidate in candidates if candidate is not None]

    def micro_batch_counts(self, degree: int) -> list[int]:
        """Numbers of micro-batches to try under a batch degree; none once time is up."""
        batch = self.pricer.global_batch
        if batch % degree or self.deadline.passed():
            return []
        counts = divisors(batch // degree)
        fixed = self.options.micro_batches
        return counts if fixed is None else [n for n in counts if n == fixed]

    def grow_family(self, family: list[ModelAxes]) -> ModelAxes | None:
        """Price a family while larger axes help, and return the best axes that fit.

        A larger axis communicates more and computes less at a time; it pays off where memory or the
        batch requires it. So the family ends after `PATIENCE` sizes in a row that are no faster
        than a smaller one that fits: a single one may only be a size that heads or widths do not
        divide by.
        """
        best_axes, best_seconds, slower = None, inf, 0
        for model_axes in family:
            seconds = self.price_axes(model_axes)
            if seconds < best_seconds:
                best_axes, best_seconds, slower = model_axes, seconds, 0
            elif best_seconds < inf:
                slower += 1
            if slower == PATIENCE:
                break
        return best_axes

    def price_axes(self, model_axes: ModelAxes) -> float:
        """Price strategies with these model axes; returns seconds of the fastest that fits.

        The most promising come first, and strategies much slower than the best are skipped.
        """
        if model_axes in self.seconds_by_axes:
            return self.seconds_by_axes[model_axes]
        first_new = len(self.candidates)
        lower_bound_seconds = self.pricer.call_prices.lower_bound_seconds
        points = [
            RunPoint(strategy, self.pricer.global_batch, micro_batches, model_chunks=MOST_CHUNKS)
            for strategy in self.strategies(model_axes)
            for micro_batches in self.micro_batch_counts(strategy.batch_degree())
        ]
        todo = [(lower_bound_seconds(p), p.strategy, p.micro_batches) for p in points]
        for lower_bound, strategy, micro_batches in sorted(todo, key=lambda item: item[0]):
            if lower_bound >= self.slow_factor * self.best_seconds or self.deadline.passed():
                break
            candidates = self.uniform_candidates(strategy, [micro_batches])
            self.update_best(candidates)
            self.candidates += candidates
        if required(self.options):
            self.candidates[first_new:] = self.add_schedules(self.candidates[first_new:])
        self.update_best(self.candidates[first_new:])
        priced = fitting(self.candidates[first_new:], self.memory_limit_bytes)
        self.seconds_by_axes[model_axes] = next((c.step_seconds for c in priced), inf)
        return self.seconds_by_axes[model_axes]

    def uniform_candidates(
        self, strategy: Strategy, micro_batch_counts: Sequence[int] = ()
    ) -> list[Candidate]:
        """Candidates of one strategy for every memory action and number of micro-batches; pinned and
        without stages, for more micro-batches only while none fits with everything kept."""
        counts = micro_batch_counts or self.micro_batch_counts(strategy.batch_degree())
        actions, candidates = base_actions(self.options.engine_actions), list[Candidate]()
        for count in counts:
            points = (RunPoint(strategy, self.pricer.global_batch, count, m) for m in actions)
            priced = [c for c in map(self.pricer.candidate, points) if c is not None]
            candidates += priced
            few = self.options.pins and strategy.stages == 1 and priced
            if few and priced[0].peak_bytes <= self.memory_limit_bytes:
                break
        return candidates
