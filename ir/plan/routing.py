"""How tokens choose experts: what the fullest rank has to do, and how many nodes a token reaches.

A step takes as long as the rank with most tokens. Experts lie on ranks in their order.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path

import msgspec

from ..errors import FileError, UsageError
from .expert_placement import at_home, balanced

BALANCED, ZIPF, CAPACITY = "balanced", "zipf:", "capacity:"
Shares = tuple[float, ...]


class Routing(msgspec.Struct, frozen=True):
    """The histogram of tokens over experts.

    `counts`: tokens by expert, in any unit (empty: every expert gets as many). `exponent`: that of
    Zipf's law, of the experts by rank (0: none). `capacity`: most tokens of an expert, as a multiple of
    the mean; what is beyond is dropped (0: nothing is). `group_share`: the part of the groups of experts
    that one token may choose from (node-limited routing, DeepSeek-V2 2024). `spare_slots` of a rank have
    replicas of experts (`expert_placement`)."""

    counts: Shares = ()
    exponent: float = 0.0
    capacity: float = 0.0
    group_share: float = 1.0
    spare_slots: int = 0

    def __repr__(self) -> str:
        """The text that `parse_routing` reads, or how many counts there are."""
        if self.counts:
            return f"counts of {len(self.counts)} experts"
        if self.capacity:
            return f"{CAPACITY}{self.capacity:g}"
        return f"{ZIPF}{self.exponent:g}" if self.exponent else BALANCED

    def fullest(self, experts: int, ranks: int) -> float:
        """Tokens of the fullest of `ranks` equal groups of experts, over those of the mean."""
        loads = self.loads(experts)
        if self.spare_slots and experts % ranks == 0:
            rows = balanced(at_home(experts, ranks, self.spare_slots), loads).rows(loads)
            return max(rows) * ranks / experts
        size = max(1, experts // ranks)
        groups = [sum(loads[i : i + size]) for i in range(0, experts, size)]
        return max(groups) * len(groups) / experts

    def loads(self, experts: int) -> Shares:
        """Tokens by expert, over the mean before any is dropped."""
        counts = self.counts or tuple((i + 1.0) ** -self.exponent for i in range(experts))
        # a histogram of another number of experts is read as a curve
        counts = tuple(counts[i * len(counts) // experts] for i in range(experts))
        scale = experts / sum(counts)
        return tuple(min(n * scale, self.capacity or n * scale) for n in counts)

    def nodes_reached(self, nodes: int, choices: int) -> float:
        """Nodes that some of a token's experts lie on, on average, where each is as likely."""
        most = ceil(nodes * self.group_share)
        return most * (1 - (1 - 1 / most) ** choices)


def parse_routing(text: str | Routing) -> Routing:
    """`balanced`, `zipf:1.2`, `capacity:1.25` or a file of counts by expert, separated by spaces, commas
    or lines; raises UsageError, or FileError for a file that has no such counts."""
    if isinstance(text, Routing):
        return text
    if text.startswith(ZIPF):
        return Routing(exponent=_number(text, text.removeprefix(ZIPF)))
    if text.startswith(CAPACITY):
        return Routing(capacity=_number(text, text.removeprefix(CAPACITY)))
    return Routing() if text == BALANCED else Routing(counts=_read_counts(Path(text)))


def _number(text: str, digits: str) -> float:
    try:
        value = float(digits)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise UsageError(f"routing {text!r}: {digits!r} is not a positive number")
    return value


def _read_counts(path: Path) -> Shares:
    try:
        texts = path.read_text(encoding="utf-8").replace(",", " ").split()
        counts = tuple(map(float, texts))
    except OSError as error:
        known = f"{BALANCED}, {ZIPF}1.2, {CAPACITY}1.25 or a file of counts by expert"
        raise UsageError(f"routing {str(path)!r} is none of {known}: {error.strerror}") from None
    except ValueError as error:
        raise FileError(f"{path}: not counts by expert: {error}") from None
    if not counts or min(counts) < 0 or not 0 < sum(counts) < float("inf"):
        raise FileError(f"{path}: not counts by expert: they are positive and finite")
    return counts
