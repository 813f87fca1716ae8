"""Record a step with every branch on values taken by a rule, and where none says which, both ways.

A side that only raises is left out, with a warning; a branch whose sides record the same is none. What
else the other side does is kept, and both are joined (`recorded/joins`).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ...errors import TraceError
from ..locate import depends_on_data
from .branches import Branch, Branches
from .numbers import UnknownNumber

MOST_SIDES = 64
Meeting = Literal["same", "neutral", "selected", "apart"]


class OtherSide(NamedTuple):
    """What is recorded where a branch takes the side that `recording` at large does not."""

    branch: Branch
    recording: Any


class Sides(NamedTuple):
    """A recording, and those of sides of branches that compute something else."""

    recording: Any
    others: tuple[OtherSide, ...]
    branches: Branches


class FirstRecording(NamedTuple):
    """A recording, the branches that it met, and lines whose side that is not taken only raises."""

    recording: Any
    branches: Branches
    raising: dict[str, None]


@dataclass(frozen=True)
class Explorer:
    """`attempt`: records a step; `restore`: puts back what that changed; `meet`: how a recording and one
    with the other side of a branch go on."""

    attempt: Callable[[Branches], Any]
    restore: Callable[[], None]
    meet: Callable[[Any, OtherSide], Meeting]

    def explored(self) -> Sides:
        """A recording, and those of other sides that compute something else.

        Raises TraceError for a branch whose sides do not meet again.
        """
        recording, branches, raising = self.first()
        others: list[OtherSide] = []
        for line in dict.fromkeys(b.line for b in branches.asked if b.line not in raising):
            others += self.of_line(line, recording, branches, raising)
        for line in raising:
            warnings.warn(
                f"{line}: a check that only raises is no part of the program", stacklevel=2
            )
        if branches.asked:  # attempts have changed what the model keeps
            self.restore()
            branches = Branches(branches.sides)
            recording = self.attempt(branches)
        return Sides(recording, tuple(others), branches)

    def first(self) -> FirstRecording:
        """A recording without errors."""
        sides: dict[str, bool] = {}
        raising: dict[str, None] = {}
        while True:
            branches = Branches(sides)
            try:
                return FirstRecording(self.attempt(branches), branches, raising)
            except TraceError as error:
                last = next((b for b in reversed(branches.asked) if b.line not in raising), None)
                if last is None or not _raised(error) or len(raising) > MOST_SIDES:
                    raise
                sides = {**branches.sides, last.line: not last.side}
                raising[last.line] = None
                self.restore()

    def of_line(
        self, line: str, recording: Any, branches: Branches, raising: dict[str, None]
    ) -> list[OtherSide]:
        """What the other sides of a line's branches compute, one for each time that it runs."""
        others: list[OtherSide] = []
        for branch in [b for b in branches.asked if b.line == line]:
            self.restore()
            flipped = Branches(branches.sides, flipped=branch.number)
            try:
                other = self.attempt(flipped)
            except UnknownNumber:
                raise
            except TraceError as error:
                if not _raised(error):
                    raise _undecided(line, f" (the other side: {error})") from error
                raising[line] = None
                return []
            side = OtherSide(branch, other)
            meeting = self.meet(recording, side)
            if meeting == "neutral" and branch.of_mask:
                return []
            if meeting in ("same", "neutral"):
                continue
            if Counter(b.line for b in flipped.asked) - Counter(b.line for b in branches.asked):
                raise _asked_again(line, branches)
            others.append(side)
            if meeting == "apart" or len(others) > MOST_SIDES:
                raise _undecided(line)
        return others


def _undecided(line: str, why: str = "") -> TraceError:
    return TraceError(
        f"{line}: the computation depends on values of tensors, and both sides of the branch compute "
        "something that does not come together again as one value of a shape: a compiled program cannot "
        f"know in advance which{why}. Use torch.where, or compute it outside the model"
    )


def _asked_again(line: str, branches: Branches) -> TraceError:
    return UnknownNumber(
        f"{line}: what runs behind this branch asks for values of tensors again, in a branch of its own "
        "or in a loop that a value ends: a compiled program cannot know in advance how often. Take a "
        "fixed number of turns with torch.where, or compute it outside the model",
        branches.known.changed,
    )


def _raised(error: TraceError) -> bool:
    """Whether the user's code has raised it."""
    cause = error.__cause__
    return cause is not None and not depends_on_data(cause)
