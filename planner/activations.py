"""Which activations travel compressed, and their gradients with them: between stages, and in sums inside
calls.

Rounding them is biased and its error is not carried over, so no theory promises that training gets
there: `auto` does so under quality `all` alone, where messages and codecs together are faster and a step
is shorter by a part of it. A name forces its programs wherever there is such a message.
"""

from __future__ import annotations

from ..cost_model.hops import Crossing, hop_of
from ..ir.cluster import Device, Link
from ..ir.compression.program import Program
from ..ir.compression.registry import ALGORITHMS, algorithm
from .compress import WORTH


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

    def hop(
        self, crossing: Crossing, link: Link, device: Device, rounds: int, work: float
    ) -> Program | None:
        """How values go from a stage to the next, both ways in so many `rounds` of a step whose `work`
        takes so many seconds beside."""
        if not self.sends or not crossing.large.elements:
            return None
        priced = [(hop_of(crossing, link, p, device).seconds, p.name, p) for p in self.sends]
        seconds, _, program = min(priced)
        plain = hop_of(crossing, link, None, device).seconds
        return program if self.forced or worth(plain, seconds, 2 * rounds, work) else None


def worth(plain: float, seconds: float, times: int, work: float) -> bool:
    """Whether a message that takes `seconds` and not `plain` makes a step shorter by the part that it
    has to."""
    return times * (plain - seconds) > WORTH * (work + times * plain)
