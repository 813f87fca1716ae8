"""What stages of a line cost on so many devices of a part, under the best of their own strategies."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, prod
from typing import NamedTuple

from msgspec.structs import replace

from ...ir.devices.cluster import Cluster
from ...ir.devices.heterogeneous import Fleet, taken
from ...ir.model import Model
from ...ir.plan.plan import ENDS, Memory, Optimizer, Span, Stage
from ...ir.plan.strategy import ROLES, Strategy
from ..candidate import StageSums
from ..pricing.candidate_pricer import Evaluator
from ..pricing.function_prices import Entries, Entry
from ..strategy_space import families, strategies


class Kind(NamedTuple):
    """Crews that are alike: so many devices of a part."""

    part: int
    width: int


Face = tuple[tuple[int, ...], tuple[int, int], bool]


class Choice(NamedTuple):
    """What a crew does with its calls: its strategy, what it remembers, and the stage it is."""

    strategy: Strategy
    memory: Memory
    stage: Stage

    @property
    def seconds(self) -> float:
        return self.stage.forward_seconds + self.stage.backward_seconds


class Crews:
    """Prices stages on crews of a fleet; micro-batches have `samples`."""

    def __init__(
        self,
        model: Model,
        fleet: Fleet,
        optimizer: Optimizer,
        roles: tuple[str, ...],
        memory_bytes: int | None,
    ) -> None:
        self.model, self.fleet, self.optimizer = model, fleet, optimizer
        self.roles = tuple(r for r in roles if not ROLES[r].stages)
        self.memory_bytes = memory_bytes
        self.evaluators: dict[Kind, Evaluator] = {}
        self.words: dict[Kind, list[Strategy]] = {}
        self.priced: dict[tuple[Kind, Strategy, Memory, int], list[Entry] | None] = {}
        self.sums: dict[tuple[Kind, Strategy, Memory, int, Face], StageSums | None] = {}
        self.choices: dict[tuple[Kind, int, Face, int], Choice | None] = {}
        self.least: dict[tuple[Kind, int], float] = {}
        self.faces: dict[Span, Face] = {}

    def evaluator(self, kind: Kind) -> Evaluator:
        if kind not in self.evaluators:
            cluster = taken(self.fleet.parts[kind.part], kind.width)
            entries = Entries(self.model, cluster)
            self.evaluators[kind] = Evaluator(entries, self.model.batch, self.optimizer)
            self.words[kind] = list(dict.fromkeys(self.strategies(cluster)))
        return self.evaluators[kind]

    def strategies(self, cluster: Cluster) -> Iterator[Strategy]:
        for family in families(cluster, self.roles):
            for word in family:
                if cluster.devices % prod(size for _, size in word) == 0:
                    yield from strategies(cluster.devices, word, self.roles, 1)

    def best(self, kind: Kind, samples: int, first: int, last: int, after: int) -> Choice | None:
        """The fastest way of a crew to run calls `first` to `last - 1`, `after` stages following, that
        fits; None where nothing does."""
        key = kind, samples, self.face(kind, first, last), after
        if key not in self.choices:
            made = (c for c in self.all(kind, samples, first, last, after) if self.fits(kind, c))
            self.choices[key] = min(made, key=lambda c: (c.seconds, str(c.strategy)), default=None)
        found = self.choices[key]
        if found is None or found.stage.pieces == ((first, last),):
            return found
        return found._replace(stage=replace(found.stage, pieces=((first, last),)))

    def face(self, kind: Kind, first: int, last: int) -> Face:
        """What tells a stage from others: its calls by what they are alike to, and its end."""
        if (first, last) not in self.faces:
            known = self.evaluator(kind)
            self.faces[first, last] = (
                tuple(known.alike[first:last]),
                known.sums.crossings[last],
                last == len(known.calls),
            )
        return self.faces[first, last]

    def fits(self, kind: Kind, choice: Choice) -> bool:
        return choice.stage.peak_bytes <= self.fleet.budget(kind.part, self.memory_bytes)

    def all(self, kind: Kind, samples: int, first: int, last: int, after: int) -> Iterator[Choice]:
        evaluator = self.evaluator(kind)
        micro_batches = self.model.batch // samples
        waiting = evaluator.waiting(after + 1, 0, micro_batches)
        for strategy in self.words[kind]:
            for memory in ENDS:
                sums = self.summed(kind, strategy, memory, samples, first, last)
                if sums is not None:
                    stage = evaluator.stage([(strategy, sums)], micro_batches, waiting, 0.0)
                    yield Choice(strategy, memory, stage)

    def summed(
        self, kind: Kind, strategy: Strategy, memory: Memory, samples: int, first: int, last: int
    ) -> StageSums | None:
        """Calls of a stage added up; None where they cannot be split so or none has work."""
        key = kind, strategy, memory, samples, self.face(kind, first, last)
        if key not in self.sums:
            evaluator, calls = self.evaluator(kind), ((first, last),)
            entries, own = self.entries(kind, strategy, memory, samples), evaluator.sums.own(calls)
            self.sums[key] = (
                None
                if entries is None or not own
                else evaluator.sums.of(
                    entries, calls, strategy.inside, samples // strategy.batch_ways(), own
                )
            )
        return self.sums[key]

    def entries(
        self, kind: Kind, strategy: Strategy, memory: Memory, samples: int
    ) -> list[Entry] | None:
        """The price of every call on a micro-batch."""
        key, ways, batch = (
            (kind, strategy, memory, samples),
            strategy.batch_ways(),
            self.model.batch,
        )
        if samples % ways:
            return None
        if key not in self.priced:
            self.priced[key] = self.evaluator(kind).prices.like(
                strategy.inside, batch // ways, batch // samples, memory
            )
        return self.priced[key]

    def device_seconds(self, kind: Kind, samples: int) -> float:
        """Of one of its devices, the least that a micro-batch takes of the whole model, if memory were
        no matter."""
        if (kind, samples) not in self.least:
            made = self.all(kind, samples, 0, len(self.model.calls), 0)
            seconds = min((choice.seconds for choice in made), default=inf)
            self.least[kind, samples] = kind.width * seconds
        return self.least[kind, samples]
