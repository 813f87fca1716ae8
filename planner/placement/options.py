"""Options of a placement search."""

from __future__ import annotations

from typing import Literal

import msgspec

from ...ir.errors import UsageError
from ...ir.plan.placement import LinkModel, MemoryRule
from ...ir.unknown_name import unknown_name

Algorithm = Literal["auto", "m-topo", "m-etf", "m-sct", "list", "exact"]
ALGORITHMS: tuple[Algorithm, ...] = ("auto", "m-topo", "m-etf", "m-sct", "list", "exact")
LINKS: tuple[LinkModel, ...] = ("duplex", "parallel", "half-duplex")
RULES: tuple[MemoryRule, ...] = ("train", "infer")
EFFORT_SECONDS = 20.0  # of search on a common core, unless a limit is given


class PlacementOptions(msgspec.Struct, frozen=True):
    """Options of `search.place`.

    `seconds`: limit of wall time. `effort_seconds` (default: the limit): planned work, as the
    number of steps that a typical core does in that time; the result is deterministic unless the
    limit cuts the search short. `colocation`: keep colocation groups on one device each.
    """

    algorithm: Algorithm = "auto"
    link: LinkModel = "duplex"
    memory_rule: MemoryRule = "train"
    seconds: float | None = None
    effort_seconds: float | None = None
    seed: int = 0
    colocation: bool = False

    def check(self) -> None:
        """Raises UsageError for unknown values."""
        for kind, value, known in (
            ("algorithm", self.algorithm, ALGORITHMS),
            ("link model", self.link, LINKS),
            ("memory rule", self.memory_rule, RULES),
        ):
            if value not in known:
                raise UsageError(unknown_name(kind, value, known))
        for amount in (self.seconds, self.effort_seconds):
            if amount is not None and not amount > 0:
                raise UsageError(f"{amount} s leaves no time to search")

    @property
    def planned_seconds(self) -> float:
        """Seconds of a typical core that the search plans to use."""
        return self.effort_seconds or self.seconds or EFFORT_SECONDS
