"""The simplest of the plans that nothing tells apart.

Repeats of one measured step lie 1.6 to 5 % apart, so a mix of strategies that is predicted to be half a
percent faster than fewer kinds of layers is not known to be: it costs functions to compile, and rows to
read."""

from __future__ import annotations

from ..question.candidate import Candidate
from .driver import SearchSpace


def simplest(space: SearchSpace) -> Candidate:
    """Of the candidates that fit and are as fast as the fastest, to the options' `simpler_within`, the
    fastest of those with the fewest kinds of layers; the fastest of all where none fits or layers are
    pinned."""
    best = min(space.candidates, key=space.sort_key)
    limit = best.step_seconds * (1 + space.options.simpler_within)
    equal = [c for c in space.fitting() if c.step_seconds <= limit]
    if space.options.pins or not equal:
        return best
    return min(equal, key=lambda c: (kinds_of_layers(c), space.sort_key(c)))


def kinds_of_layers(candidate: Candidate) -> int:
    """Number of strategies and memory actions that layers of a candidate take."""
    return len({(d.strategy, d.memory) for d in candidate.decisions})
