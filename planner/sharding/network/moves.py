"""Seconds between layouts, as tables that values share.

What a transition does depends only on which states are equal, so a pair of layouts is reduced to a
pattern, its cuts numbered by first appearance: a few thousand patterns stand for every pair of every
value, and are walked once. What a step costs depends on its kind, its axis and the other axes that
cut the value, so values that cost alike share one table.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from math import inf, prod

import numpy as np
from numpy.typing import NDArray

from ....ir.errors import PlaitError
from ....ir.layout import PARTIAL, REPLICATE, Layout, State, Step, transition
from ..problem import BulkCosts, Costs
from .labels import Ints

Floats = NDArray[np.float64]
Signature = tuple[str, int, frozenset[int]]  # kind, axis, axes that cut the value before
WHOLE, SUM, CUT = 0, 1, 2  # codes of states; cuts are numbered from CUT
FREE, NEVER = -2, -1  # steps that stand for none and for no way


class Moves:
    """Tables of transition seconds for one problem over `axes` mesh axes."""

    def __init__(self, costs: Costs, axes: int) -> None:
        self.costs, self.axes = costs, axes
        self.signatures: dict[Signature, int] = {}
        self.steps: list[Step] = []
        # the radix of a pattern's digit: R, P, and as many cuts as came before it and one more
        self.radices = [CUT + 1 + place for place in range(2 * axes)]
        self.known = np.full(prod(self.radices), -1)
        self.walks: list[list[int]] = []
        self.padded: Ints = np.zeros((0, 1), dtype=np.int64)
        self.shapes: dict[Hashable, Ints] = {}
        self.tables: dict[Hashable, Floats] = {}

    def table(self, value: int, rows: Ints, columns: Ints, states: tuple[State, ...]) -> Floats:
        """Seconds from each layout of `rows` to each of `columns`; equal questions, one array.

        A layout is a number whose digits, one per axis, are places in `states`: R, P, the cuts.
        """
        have, want = (_digits(numbers, len(states), self.axes) for numbers in (rows, columns))
        if not isinstance(self.costs, BulkCosts):
            sources, targets = (
                [tuple(states[d] for d in row) for row in found.tolist()] for found in (have, want)
            )
            return np.array([[self.seconds(value, a, b) for b in targets] for a in sources])
        return self.shared(self.costs.alike(value), value, have, want)

    def seconds(self, value: int, have: Layout, want: Layout) -> float:
        """One transition of one value; infinite where there is none."""
        try:
            steps = transition(have, want)
        except (PlaitError, KeyError):
            return inf
        return sum((self.costs.step(value, step) for step in steps), 0.0)

    def shared(self, alike: Hashable, value: int, have: Ints, want: Ints) -> Floats:
        """The table of every value that costs alike and takes these layouts."""
        shape = (have.tobytes(), want.tobytes(), have.shape)
        key = (alike, shape)
        if key not in self.tables:
            if shape not in self.shapes:
                self.shapes[shape] = self.shape(have, want)
            prices = np.array([self.costs.step(value, step) for step in self.steps] + [0.0, inf])
            self.tables[key] = prices[self.padded].sum(axis=1)[self.shapes[shape]]
        return self.tables[key]

    def shape(self, have: Ints, want: Ints) -> Ints:
        """The number of the pattern of every pair."""
        numbers = _patterns(have, want, self.radices)
        for number in np.unique(numbers[self.known[numbers] < 0]):
            self.known[number] = len(self.walks)
            self.walks.append(self.walk(int(number)))
        if len(self.padded) < len(self.walks):
            longest = max(map(len, self.walks))
            self.padded = np.array([[*w, *[FREE] * (longest - len(w))] for w in self.walks])
        return self.known[numbers]

    def walk(self, number: int) -> list[int]:
        """The steps of one pattern; at least one, of which some may stand for none."""
        pattern: list[int] = []
        for radix in reversed(self.radices):
            number, digit = divmod(number, radix)
            pattern.insert(0, digit)
        steps = _walk(tuple(pattern))
        return [NEVER] if steps is None else [self.number(step) for step in steps] or [FREE]

    def number(self, step: Step) -> int:
        cut = frozenset(i for i, s in enumerate(step.before) if isinstance(s, tuple))
        signature = (step.kind, step.axis, cut)
        if signature not in self.signatures:
            self.signatures[signature] = len(self.steps)
            self.steps.append(step)
        return self.signatures[signature]


@cache
def _walk(pattern: tuple[int, ...]) -> tuple[Step, ...] | None:
    """The transition between the two halves of a pattern, or None where there is none."""
    layout: Layout = tuple(
        REPLICATE if code == WHOLE else PARTIAL if code == SUM else (0, code - CUT)
        for code in pattern
    )
    half = len(pattern) // 2
    try:
        return transition(layout[:half], layout[half:])
    except (PlaitError, KeyError):
        return None


def _digits(numbers: Ints, base: int, axes: int) -> Ints:
    """Layouts as rows of digits, one per axis."""
    return np.stack([numbers // base**k % base for k in reversed(range(axes))], axis=1)


def _patterns(have: Ints, want: Ints, radices: list[int]) -> Ints:
    """Pairs [have, want] with their cuts numbered by first appearance, as numbers."""
    shape = (len(have), len(want))
    digits = [column[:, None] for column in have.T] + [column[None, :] for column in want.T]
    codes: list[Ints] = []
    fresh = np.full((1, 1), CUT)
    number = np.zeros((1, 1), dtype=np.int64)
    for place, (digit, radix) in enumerate(zip(digits, radices, strict=True)):
        code, known = digit, digit < CUT
        for earlier in range(place):
            same = (digits[earlier] == digit) & (digit >= CUT)
            code, known = np.where(same, codes[earlier], code), known | same
        code = np.where(known, code, fresh)
        fresh = fresh + ~known
        codes.append(code)
        number = number * radix + code
    return np.broadcast_to(number, shape)
