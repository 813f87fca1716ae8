"""What a user may ask of a placement, and what comes back."""

from __future__ import annotations

from typing import Literal

import msgspec

from ...ir.errors import UsageError
from ...ir.placement import LinkModel, MemoryRule

Algorithm = Literal["auto", "m-topo", "m-etf", "m-sct", "list", "exact"]
ALGORITHMS: tuple[Algorithm, ...] = ("auto", "m-topo", "m-etf", "m-sct", "list", "exact")
LINKS: tuple[LinkModel, ...] = ("duplex", "parallel", "half-duplex")
RULES: tuple[MemoryRule, ...] = ("train", "infer")
EFFORT_SECONDS = 20.0  # of search on a common core, unless a limit is given


class PlacementOptions(msgspec.Struct, frozen=True):
    """`seconds` limits the wall time of the search. How much it plans to do is `effort_seconds` (the
    limit, if that is None): so many steps that a common core needs that long. The outcome is the same
    every time unless the limit cuts it short. `colocation` keeps groups on one device each."""

    algorithm: Algorithm = "auto"
    link: LinkModel = "duplex"
    memory_rule: MemoryRule = "train"
    seconds: float | None = None
    effort_seconds: float | None = None
    seed: int = 0
    colocation: bool = False

    def check(self) -> None:
        """UsageError for what is not known."""
        for word, known in (
            (self.algorithm, ALGORITHMS),
            (self.link, LINKS),
            (self.memory_rule, RULES),
        ):
            if word not in known:
                raise UsageError(f"unknown {word!r}; known: {', '.join(known)}")
        for amount in (self.seconds, self.effort_seconds):
            if amount is not None and not amount > 0:
                raise UsageError(f"{amount} s leaves no time to search")

    @property
    def planned_seconds(self) -> float:
        """What the search plans to take."""
        return self.effort_seconds or self.seconds or EFFORT_SECONDS
