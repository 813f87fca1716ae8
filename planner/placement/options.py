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
SECONDS = 20.0  # of search, unless a limit is given


class PlacementOptions(msgspec.Struct, frozen=True):
    """`seconds` of wall time for the search, which is deterministic unless that cuts it short;
    `colocation` keeps operators of one group on one device."""

    algorithm: Algorithm = "auto"
    link: LinkModel = "duplex"
    memory_rule: MemoryRule = "train"
    seconds: float = SECONDS
    seed: int = 0
    colocation: bool = False

    def check(self) -> None:
        """UsageError for what is not known."""
        for word, known in (
            (self.algorithm, ALGORITHMS), (self.link, LINKS), (self.memory_rule, RULES),
        ):  # fmt: skip
            if word not in known:
                raise UsageError(f"unknown {word!r}; known: {', '.join(known)}")
        if not self.seconds > 0:
            raise UsageError(f"a time limit of {self.seconds} s leaves no time")
