"""Which activations travel compressed, and their gradients with them: between stages, and in sums inside
calls.

Rounding them is biased and its error is not carried over, so no theory promises that training gets
there: `auto` does so under quality `all` alone, where messages and codecs together are faster and a step
is shorter by a part of it. A name forces its programs wherever there is such a message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from ...cost_model.communication.compressed_all_reduce import Reductions
from ...cost_model.communication.stage_transfer import Crossing, hop_of
from ...cost_model.operators.function_cost import FunctionTable
from ...ir.compression.program import Program
from ...ir.compression.registry import ALGORITHMS, algorithm
from ...ir.devices.cluster import Cluster, Device, Link
from ...ir.model import Model
from ...ir.plan.strategy import ROLES
from .collectives import WORTH

Word = tuple[tuple[str, int], ...]  # the axes inside a batch replica, outermost first


class Priced(Protocol):
    """What is asked of an entry of `Tables`."""

    @property
    def costs(self) -> FunctionTable: ...


class Tables(Protocol):
    """What is asked of `Entries`: prices of a model's functions."""

    @property
    def model(self) -> Model: ...
    @property
    def cluster(self) -> Cluster: ...
    def table_of(self, name: str, word: Word, local_batch: int) -> Priced | None: ...
    def experts_ways(self, word: Word) -> int: ...


class Activations:
    """Chooses programs for activations. `compress`: `none`, `auto` or the name of an algorithm."""

    def __init__(self, compress: str = "none", quality: str = "safe") -> None:
        self.forced = compress not in ("none", "auto")
        known = [algorithm(compress)] if self.forced else []
        if compress == "auto" and quality == "all":
            known = list(ALGORITHMS.values())
        found = [p for one in known for p in one.programs if p.subject == "activations"]
        self.sends = tuple(p for p in found if p.result == "send")
        self.sums = tuple(p for p in found if p.result == "all_reduce")
        self.reduced: dict[tuple[Word, int], Reductions | None] = {}

    def reductions(self, tables: Tables, word: Word, samples: int) -> Reductions | None:
        """How sums inside calls of so many samples per device travel."""
        roles = [role for role, size in word if ROLES[role].operators and size > 1]
        if not self.sums or not roles:
            return None
        key = word, samples
        if key not in self.reduced:
            self.reduced[key] = self.fastest(tables, word, samples, roles)
        return self.reduced[key]

    def fastest(
        self, tables: Tables, word: Word, samples: int, roles: Sequence[str]
    ) -> Reductions | None:
        plain = whole_seconds(tables, word, samples, None)
        made = [Reductions(dict.fromkeys(roles, p), tables.cluster) for p in self.sums]
        seconds = [whole_seconds(tables, word, samples, one) for one in made]
        least = min(range(len(made)), key=seconds.__getitem__)
        if seconds[least] == plain:  # nothing that is large enough
            return None
        return made[least] if self.forced or worth(plain, seconds[least], 1, 0.0) else None

    def hop(
        self, crossing: Crossing, link: Link, device: Device, rounds: int, work: float
    ) -> Program | None:
        """How values go from a stage to the next, both ways in so many `rounds` of a step whose `work`
        takes so many seconds beside."""
        if not self.sends or not crossing.large.elements:
            return None
        priced = [(hop_of(crossing, link, p, device).seconds, p) for p in self.sends]
        seconds, program = min(priced, key=lambda pair: pair[0])
        plain = hop_of(crossing, link, None, device).seconds
        return program if self.forced or worth(plain, seconds, 2 * rounds, work) else None


def whole_seconds(tables: Tables, word: Word, samples: int, reductions: Reductions | None) -> float:
    """Seconds of all calls of a model for so many samples per device."""
    total = 0.0
    for name, count in Counter(call.function for call in tables.model.calls).items():
        table = tables.table_of(name, word, samples)
        if table is not None:
            ways = tables.model.batch // (samples * tables.experts_ways(word))
            cost = table.costs.at(samples, "keep", ways, reductions)
            total += count * (cost.forward.seconds + cost.backward.seconds)
    return total


def worth(plain: float, seconds: float, times: int, work: float) -> bool:
    """Whether a message that takes `seconds` and not `plain` makes a step shorter by the part that it
    has to."""
    return times * (plain - seconds) > WORTH * (work + times * plain)
