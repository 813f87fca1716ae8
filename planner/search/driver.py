"""The search: every candidate of the space, priced as it is met, until it is done or stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, lcm
from typing import Any

from msgspec.structs import replace

from ...ir.devices.cluster import Cluster
from ...ir.errors import UsageError
from ...ir.model import Model
from ...ir.plan.strategy import ROLES, Strategy
from ...ir.tensor import ITEM_BYTES
from ..activations.ladder import ends, further
from ..candidate import Candidate, Decision
from ..compression.activations import Activations
from ..compression.collectives import Compressor
from ..compression.optimizers import allowed
from ..compression.optimizers import check as check_leader
from ..deadline import Clock
from ..layers.mix import Mixture, fastest, groups
from ..options import PlanOptions, optimizer_states
from ..pins import decisions, pinned
from ..pricing.candidate_pricer import Evaluator
from ..pricing.function_prices import Entries
from ..strategy_space import Word, divisors, families, strategies, with_experts

BLENDED = 40  # groups at most
SLOW = 1.25  # times as long as the best: more is not among the next best
LARGE = 1024  # devices: the widest axes first, so that little of the rest is near the best
PATIENCE = 2  # sizes of an axis that help no more
MOST_PIECES = 8  # per stage: bubbles shrink as their inverse, while sends and code grow with them


class Space:
    """The candidates of a model on a cluster, priced as they are met."""

    def __init__(self, evaluator: Evaluator, options: PlanOptions, budget: int) -> None:
        self.evaluator, self.options, self.budget = evaluator, options, budget
        self.cluster = evaluator.cluster
        entries = evaluator.entries
        check_leader((pin.strategy for pin in options.pins), options.optimizer, options.compress)
        useful = allowed(options.roles, options.optimizer)
        useful = {r for r in useful if entries.has_experts or not ROLES[r].experts}
        useful = {r for r in useful if entries.has_tokens or not ROLES[r].sequence}
        self.roles = tuple(r for r in ROLES if r in useful)
        self.stages = sum(entries.functions[c.function].differentiable for c in evaluator.calls)
        self.found: list[Candidate] = []
        self.seconds: dict[Word, float] = {}  # of the fastest that fits
        self.best = inf  # seconds of the fastest that fits, as far as it is known
        self.bound = inf  # seconds that no blend is below
        self.slow = SLOW
        self.clock = Clock(options.time_limit_seconds)

    @staticmethod
    def of(model: Model, cluster: Cluster, options: PlanOptions) -> Space:
        """The space that options span."""
        options.check()
        item = _item_bytes(model)
        optimizer = optimizer_states(options.optimizer, item < 4, item)
        compressor = Compressor(options.compress, options.quality, options.optimizer)
        activations = Activations(options.compress, options.quality)
        entries = Entries(model, cluster, activations=activations)
        evaluator = Evaluator(entries, model.batch, optimizer, compressor)
        return Space(evaluator, options, options.memory_bytes or cluster.device.memory_bytes)

    def again(self, cluster: Cluster | None = None, **changes: Any) -> Space:
        """The space of the same model under other options, or on another cluster."""
        options = replace(self.options, **changes)
        if cluster is None or cluster == self.cluster:
            budget = options.memory_bytes or self.cluster.device.memory_bytes
            return Space(self.evaluator, options, budget)
        return Space.of(self.evaluator.model, cluster, options)

    def fitting(self) -> list[Candidate]:
        return [c for c in self.found if c.peak_bytes <= self.budget]

    def order(self, candidate: Candidate) -> tuple[bool, float, int, str, int, int, str]:
        """What fits first, faster first; equal times: less memory, then a fixed order."""
        return (
            candidate.peak_bytes > self.budget,
            candidate.step_seconds,
            candidate.peak_bytes,
            candidate.word,
            candidate.micro_batches,
            candidate.chunks,
            candidate.memory,
        )

    def run(self) -> list[Candidate]:
        """Every candidate of the space that the model can be split into, or those met in time.
        An interrupt (Ctrl-C) ends the search as a limit does."""
        try:
            self.search()
        except KeyboardInterrupt:
            if not self.found:
                raise
            self.clock.stop()
        return self.found

    def search(self) -> None:
        if self.options.pins:
            self.pinned()
            self.met(self.found)
            self.found = self.interleave(self.found)
            if all(pin.memory for pin in self.options.pins):
                return
            self.save_memory()
            self.blend(self.found)
            return
        made = families(self.cluster, self.roles)
        if self.cluster.devices > LARGE:
            for word in dict.fromkeys(family[-1] for family in made):
                self.fastest(word)
        best = [self.grow(family) for family in made]
        for word in dict.fromkeys(word for word in best if word is not None):
            self.grow(with_experts(self.cluster, self.roles, word))
        self.save_memory()
        self.blend(self.found)

    def interleave(self, found: list[Candidate]) -> list[Candidate]:
        """Candidates, and those with several pieces per stage which with the smallest bubbles would beat
        the fastest one that fits; these alone where they are asked for. Stages hold more of them in
        flight, so what does not fit in one piece per stage is passed over."""
        if self.options.schedule == "1f1b":
            return found
        asked, alike = self.options.schedule == "interleaved", dict[object, list[Candidate]]()
        for c in found:
            key = tuple((d.first, d.strategy) for d in c.decisions), c.micro_batches
            alike.setdefault(key, []).append(c)
        floors = [
            (min(c.step_seconds * (1 - c.bubble * (1 - 1 / MOST_PIECES)) for c in own), own)
            for own in alike.values()
            if own[0].strategies[0].stages > 1
            and (asked or min(c.peak_bytes for c in own) <= self.budget)
        ]
        for floor, own in sorted(floors, key=lambda item: item[0]):
            if (floor >= self.best and not asked) or self.clock.late():
                break
            made = [again for c in own for again in self.interleaved(c)]
            if asked and made:
                found = [c for c in found if c not in own]
            found = found + made
            self.met(made)
        return found

    def met(self, made: Sequence[Candidate]) -> float:
        """The seconds of the fastest of these that fits, which may be the best so far."""
        fastest = min((c.step_seconds for c in made if c.peak_bytes <= self.budget), default=inf)
        self.best = min(self.best, fastest)
        return fastest

    def interleaved(self, candidate: Candidate) -> Iterator[Candidate]:
        """A candidate again with every number of pieces per stage that it may have."""
        count, decisions = candidate.micro_batches, candidate.decisions
        for chunks in interleavings(decisions[0].strategy.stages, count, self.stages):
            if len(decisions) > 1:
                made = self.evaluator.blend(decisions, count, chunks)
            else:
                made = self.evaluator.candidate(
                    decisions[0].strategy, count, decisions[0].memory, chunks
                )
            if made is not None:
                yield made

    def save_memory(self) -> None:
        """Add candidates that do other things about memory than keep everything or recompute it."""
        self.found += further(
            self.found,
            self.budget,
            self.evaluator.candidate,
            self.options.memory_actions,
            self.clock,
        )

    def blend(self, found: list[Candidate]) -> None:
        """Add mixtures of every group of candidates that may beat the fastest one that fits."""
        best = self.met(found)
        mixtures = [
            (mixture.floor(self.budget), number, mixture)
            for number, group in enumerate(groups(found))
            if fastest(group) < best and not self.clock.late()
            for mixture in [Mixture(self.evaluator, group, self.options.fractions)]
        ]
        self.bound = min((least for least, *_ in mixtures), default=inf)
        for least, _, mixture in sorted(mixtures)[:BLENDED]:
            if least >= best or self.clock.late():
                break
            made = mixture.best(self.budget, best)
            if made is not None and made not in found:
                found.append(made)
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
            self.found += self.candidates(next(iter(words)))
            return
        for rest in self.like(next(iter(words))) if free else [next(iter(words))]:
            for memory in ends(self.options.memory_actions):
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
        counts = self.counts(lcm(*(d.strategy.batch_ways() for d in made)))
        bounds = self.options.bounds
        found = (
            self.evaluator.mixed(made, bounds, count)
            if bounds
            else self.evaluator.blend(made, count)
            for count in counts
        )
        return [candidate for candidate in found if candidate is not None]

    def counts(self, ways: int) -> list[int]:
        """Numbers of micro-batches to try where the batch is split so many ways; none once time is
        up."""
        batch = self.evaluator.global_batch
        if batch % ways or self.clock.late():
            return []
        fixed = self.options.micro_batches
        return divisors(batch // ways) if fixed is None else [fixed]

    def grow(self, family: list[Word]) -> Word | None:
        """Price the words of a family as long as a larger one helps, and give the best that fits.

        A larger axis sends more and computes less at a time; it pays where memory or the batch asks
        for it, so after two in a row that are no faster than a smaller one that fits there is no
        other: one may only be a size that heads or widths do not divide by."""
        best, seconds, slower = None, inf, 0
        for word in family:
            fastest = self.fastest(word)
            if fastest < seconds:
                best, seconds, slower = word, fastest, 0
            elif seconds < inf:
                slower += 1
            if slower == PATIENCE:
                break
        return best

    def fastest(self, word: Word) -> float:
        """Price the strategies with these axes inside, the most promising first, as long as they may be
        nearly as fast as the best; gives the seconds of the fastest that fits."""
        if word in self.seconds:
            return self.seconds[word]
        floor, before = self.evaluator.prices.floor_seconds, len(self.found)
        todo = [
            (floor(strategy, count, MOST_PIECES), strategy, count)
            for strategy in strategies(self.cluster.devices, word, self.roles, self.stages)
            for count in self.counts(strategy.batch_ways())
        ]
        for least, strategy, count in sorted(todo, key=lambda item: item[0]):
            if least >= self.slow * self.best or self.clock.late():
                break
            made = self.candidates(strategy, [count])
            self.met(made)
            self.found += made
        self.found[before:] = self.interleave(self.found[before:])
        self.seconds[word] = self.met(self.found[before:])
        return self.seconds[word]

    def candidates(self, strategy: Strategy, counts: Sequence[int] = ()) -> list[Candidate]:
        """Every number of micro-batches, or those given, and every memory action of a word."""
        counts = counts or self.counts(strategy.batch_ways())
        if self.options.pins and strategy.stages == 1:
            counts = counts[:1]
        made = (
            self.evaluator.candidate(strategy, count, memory)
            for count in counts
            for memory in ends(self.options.memory_actions)
        )
        return [candidate for candidate in made if candidate is not None]


def interleavings(stages: int, micro_batches: int, most: int) -> Iterator[int]:
    """Pieces per stage that interleaved schedules may have: micro-batches go round in equal rounds of
    as many as stages or more, and each of at most so many pieces has work."""
    if micro_batches >= stages and micro_batches % (micro_batches // stages) == 0:
        yield from range(2, min(MOST_PIECES, most // stages) + 1)


def _item_bytes(model: Model) -> int:
    return max((ITEM_BYTES[p.type.dtype] for p in model.parameters if p.trainable), default=4)
