"""Memory actions: what forward leaves for backward, where it waits, and in how many chunks it runs.

keep                      everything that backward reads
save 75%                  that part of it; the rest is computed again
recompute                 the inputs alone
offload, offload 50%      the same, waiting in host memory
offload inputs
split 8                   the inputs; forward and backward run in 8 chunks, one after the other
"""

from __future__ import annotations

import re
from typing import Literal, Self

from ..files.text_value import TextValue

Variant = Literal["keep", "recompute"] | tuple[int, ...]  # the values that forward saves
ALL = 100  # per cent
INPUTS = 0  # per cent: nothing but the inputs of the call
SPELLINGS = re.compile(
    r"(?P<keep>keep)|(?P<recompute>recompute)|save (?P<save>[1-9][0-9]?)%"
    r"|split (?P<split>[1-9][0-9]{0,5})"
    r"|offload(?: (?:(?P<offload>[1-9][0-9]?)%|(?P<inputs>inputs)))?"
)


class MemoryAction(TextValue):
    """What a call does to save memory.

    `saved_percent` of the bytes that forward may leave for backward are saved, at least the inputs;
    they wait in host memory if `on_host`. With several `chunks`, forward and backward of a chunk run
    at once and only the inputs are saved.
    """

    saved_percent: int = ALL
    on_host: bool = False
    chunks: int = 1

    def __post_init__(self) -> None:
        if not INPUTS <= self.saved_percent <= ALL or self.chunks < 1:
            raise ValueError(f"{self.saved_percent} % in {self.chunks} chunks is no memory action")
        if self.chunks > 1 and (self.saved_percent != INPUTS or self.on_host):
            raise ValueError("a call in chunks saves its inputs, on the device")

    @property
    def partial(self) -> bool:
        """Whether some of the saveable values are saved and others not."""
        return INPUTS < self.saved_percent < ALL

    @property
    def chunked(self) -> bool:
        """Whether forward and backward run in several chunks."""
        return self.chunks > 1

    @property
    def saved_fraction(self) -> float:
        """Fraction of the saveable bytes that forward leaves for backward."""
        return self.saved_percent / ALL

    def variant(self, saved: tuple[int, ...]) -> Variant:
        """The values that forward saves: all, the inputs only, or those of `saved`."""
        if self.partial:
            return saved
        return "keep" if self.saved_percent == ALL else "recompute"

    def __lt__(self, other: MemoryAction) -> bool:
        """The action that needs more memory comes first."""
        mine = self.chunks, self.on_host, -self.saved_percent
        return mine < (other.chunks, other.on_host, -other.saved_percent)

    def __str__(self) -> str:
        if self.chunked:
            return f"split {self.chunks}"
        if self.on_host:
            parts = {ALL: "", INPUTS: " inputs"}
            return "offload" + parts.get(self.saved_percent, f" {self.saved_percent}%")
        return {ALL: "keep", INPUTS: "recompute"}.get(
            self.saved_percent, f"save {self.saved_percent}%"
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """`save 75%` as a value; raises ValueError."""
        match = SPELLINGS.fullmatch(text)
        if match is None or text == "split 1":
            raise ValueError(f"{text!r:.40} is no memory action, as `save 50%` is")
        if match["split"]:
            return cls(INPUTS, chunks=int(match["split"]))
        if match["keep"] or match["recompute"]:
            return cls(ALL if match["keep"] else INPUTS)
        if match["save"]:
            return cls(int(match["save"]))
        percent = int(match["offload"]) if match["offload"] else ALL
        return cls(INPUTS if match["inputs"] else percent, on_host=True)


KEEP = MemoryAction()
RECOMPUTE = MemoryAction(INPUTS)
OFFLOAD = MemoryAction(on_host=True)
BASIC_ACTIONS = (KEEP, RECOMPUTE)  # save everything, save the inputs alone
