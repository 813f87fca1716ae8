"""What every call of a model takes and holds under a strategy and a memory action."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf

from ...ir.plan.plan import DIVIDED, Memory
from ...ir.plan.strategy import Strategy
from ..candidate import Decision
from .function_prices import Entries, Entry, Word


class Prices:
    """Looks up the price of every call, in micro-batches of a global batch."""

    def __init__(self, entries: Entries, global_batch: int) -> None:
        self.entries, self.global_batch = entries, global_batch
        self.calls, self.once = entries.model.calls, entries.model.once()
        counts = Counter(call.function for call in self.calls)
        self.repeated = {name for name, count in counts.items() if count > 1}
        every = entries.practice.recompute_every
        faces = [(c.function, i % every == 0, i in self.once) for i, c in enumerate(self.calls)]
        firsts: dict[object, int] = {}
        self.alike = [
            firsts.setdefault(face, i) for i, face in enumerate(faces)
        ]  # the first such call
        self.in_time = model_in_time(entries, self.once)
        self.whole: dict[tuple[Word, int], float] = {}  # seconds of a micro-batch in all stages

    def variant(self, call: int, memory: Memory, word: Word, samples: int) -> Memory:
        """What a call does where layers do `memory`, with so many samples per device. Only repeated
        layers recompute, they are where the activations are; pieces are for all that they help."""
        name, every = self.calls[call].function, self.entries.practice.recompute_every
        repeated = name in self.repeated and call % every == 0
        if memory not in DIVIDED:
            return memory if repeated else "keep"
        usual: Memory = "recompute" if repeated else "keep"
        return memory if self.helps(name, memory, usual, word, samples) else usual

    def helps(self, name: str, memory: Memory, usual: Memory, word: Word, samples: int) -> bool:
        """Whether a function needs less at its worst moment under `memory` than as usual."""
        prices = [self.entries.entry(name, word, samples, m) for m in (memory, usual)]
        one, other = (
            max(e.cost.forward.peak_bytes, e.cost.backward.peak_bytes) + e.cost.leaves if e else inf
            for e in prices
        )
        return one < other

    def of(self, decisions: tuple[Decision, ...], micro_batches: int) -> list[Entry] | None:
        """The price of every call; None where one cannot be split so."""
        if micro_batches > 1 and not self.in_time:
            return None
        entries: list[Entry] = []
        for decision in decisions:
            samples, left = divmod(self.global_batch, decision.strategy.batch_ways())
            if left or samples % micro_batches:
                return None
            own = self.like(
                decision.strategy.inside,
                samples,
                micro_batches,
                decision.memory,
                range(decision.first, decision.last),
            )
            if own is None:
                return None
            entries += own
        return entries

    def like(
        self,
        word: Word,
        batch: int,
        micro_batches: int,
        memory: Memory,
        members: Sequence[int] | None = None,
    ) -> list[Entry] | None:
        """The price of calls under one strategy, of all unless `members` are named; None where one
        cannot be split so."""
        alike = self.alike if members is None else [self.alike[i] for i in members]
        known: dict[int, Entry] = {}
        for first in dict.fromkeys(alike):
            local = batch if first in self.once else batch // micro_batches
            taken = self.variant(first, memory, word, local)
            entry = self.entries.entry(self.calls[first].function, word, local, taken)
            if entry is None:
                return None
            known[first] = entry
        return [known[first] for first in alike]

    def seconds(self, entries: list[Entry]) -> list[float]:
        """What every call takes of a micro-batch; those that run once per step take nothing."""
        different = {id(e): e.cost for e in entries}
        both = {
            key: cost.forward.seconds + cost.backward.seconds for key, cost in different.items()
        }
        return [0.0 if i in self.once else both[id(e)] for i, e in enumerate(entries)]

    def floor_seconds(self, strategy: Strategy, micro_batches: int, pieces: int) -> float:
        """Seconds that hardly any plan of a strategy is below that keeps all and has at most so many
        pieces per stage, however well they are balanced; nothing for what cannot be split so."""
        batch, stages = self.global_batch // strategy.batch_ways(), strategy.stages
        key = strategy.inside, batch // micro_batches
        if key not in self.whole:
            entries = self.like(strategy.inside, batch, micro_batches, "keep")
            self.whole[key] = sum(self.seconds(entries)) if entries else 0.0
        rounds = micro_batches + (stages - 1) / pieces
        return self.whole[key] / stages * rounds / self.entries.cluster.device.ranks_per_processor


def model_in_time(entries: Entries, once: frozenset[int]) -> bool:
    """Whether the batch can be split into micro-batches at all."""
    names = {c.function for i, c in enumerate(entries.model.calls) if i not in once}
    return entries.model.batch % 2 == 0 and all(entries.in_time(name) for name in names)
