"""Seconds between layouts, as tables that values share.

What a transition does depends only on which states are equal, so a pair of layouts is reduced to a
pattern with its cuts numbered by first appearance: a few thousand patterns stand for every pair of
every value, and are walked once. What a step costs depends on its kind, its axis and the other axes
that cut the value, so values that cost the same share one table.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import inf

import numpy as np
from numpy.typing import NDArray

from ...ir.errors import PlaitError
from ...ir.layout import PARTIAL, REPLICATE, Layout, State, Step, transition
from .problem import BulkCosts, Costs
from .space import Ints

Floats = NDArray[np.float64]
Signature = tuple[str, int, frozenset[int]]  # kind, axis, axes that cut the value before
WHOLE, SUM, CUT = 0, 1, 2  # codes of states; cuts are numbered from CUT
FREE, NEVER = -2, -1  # steps that stand for none and for no way


class Moves:
    """Tables of transition seconds for one problem."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.signatures: dict[Signature, int] = {}
        self.steps: list[Step] = []
        self.patterns: dict[tuple[int, ...], tuple[int, ...] | None] = {}
        self.shapes: dict[Hashable, tuple[Ints, Ints]] = {}
        self.tables: dict[Hashable, Floats] = {}

    def table(
        self, value: int, rows: Ints, columns: Ints, states: tuple[State, ...], axes: int
    ) -> Floats:
        """Seconds from each layout of `rows` to each of `columns`; equal questions, one array.

        A layout is a number whose digits, one per axis, are places in `states`: R, P, the cuts.
        """
        have, want = (_digits(numbers, len(states), axes) for numbers in (rows, columns))
        if not isinstance(self.costs, BulkCosts):
            sources, targets = (
                [tuple(states[d] for d in row) for row in found.tolist()] for found in (have, want)
            )
            return np.array([[self.seconds(value, a, b) for b in targets] for a in sources])
        return self.shared(self.costs.alike(value), value, have, want)

    def shared(self, alike: Hashable, value: int, have: Ints, want: Ints) -> Floats:
        """The table of every value that costs alike and takes these layouts."""
        shape = (have.tobytes(), want.tobytes(), have.shape)
        key = (alike, shape)
        if key not in self.tables:
            if shape not in self.shapes:
                self.shapes[shape] = self.shape(have, want)
            walks, places = self.shapes[shape]
            prices = np.array([self.costs.step(value, step) for step in self.steps] + [0.0, inf])
            self.tables[key] = prices[walks].sum(axis=1)[places].reshape(len(have), len(want))
        return self.tables[key]

    def seconds(self, value: int, have: Layout, want: Layout) -> float:
        """One transition of one value; infinite where there is none."""
        try:
            steps = transition(have, want)
        except (PlaitError, KeyError):
            return inf
        return sum((self.costs.step(value, step) for step in steps), 0.0)

    def shape(self, have: Ints, want: Ints) -> tuple[Ints, Ints]:
        """Steps of every distinct pattern [patterns, longest], and the pattern of every pair."""
        pairs = np.concatenate(
            [np.repeat(have, len(want), axis=0), np.tile(want, (len(have), 1))], axis=1
        )
        patterns, places = np.unique(_numbered(pairs), axis=0, return_inverse=True)
        walks = [self.walk(tuple(map(int, pattern))) for pattern in patterns]
        longest = max((len(w) for w in walks if w is not None), default=0) or 1
        rows = [
            [NEVER] * longest if walk is None else [*walk, *[FREE] * (longest - len(walk))]
            for walk in walks
        ]
        return np.array(rows), places.ravel()

    def walk(self, pattern: tuple[int, ...]) -> tuple[int, ...] | None:
        """Numbers of the steps of one pattern, or None where there is no way."""
        if pattern not in self.patterns:
            half = len(pattern) // 2
            layout = tuple(_state(code) for code in pattern)
            try:
                steps = transition(layout[:half], layout[half:])
                self.patterns[pattern] = tuple(self.number(step) for step in steps)
            except (PlaitError, KeyError):
                self.patterns[pattern] = None
        return self.patterns[pattern]

    def number(self, step: Step) -> int:
        cut = frozenset(i for i, s in enumerate(step.before) if isinstance(s, tuple))
        signature = (step.kind, step.axis, cut)
        if signature not in self.signatures:
            self.signatures[signature] = len(self.steps)
            self.steps.append(step)
        return self.signatures[signature]


def _digits(numbers: Ints, base: int, axes: int) -> Ints:
    """Layouts as rows of digits, one per axis."""
    return np.stack([numbers // base**k % base for k in reversed(range(axes))], axis=1)


def _numbered(pairs: Ints) -> Ints:
    """Every row with its cuts numbered by first appearance."""
    found = np.zeros_like(pairs)
    fresh = np.full(len(pairs), CUT)
    for place in range(pairs.shape[1]):
        column = pairs[:, place]
        known = column < CUT
        code = column.copy()
        for earlier in range(place):
            same = ~known & (pairs[:, earlier] == column)
            code[same] = found[same, earlier]
            known |= same
        code[~known] = fresh[~known]
        fresh[~known] += 1
        found[:, place] = code
    return found


def _state(code: int) -> State:
    return REPLICATE if code == WHOLE else PARTIAL if code == SUM else (0, code - CUT)
