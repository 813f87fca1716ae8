"""Tables of resharding seconds between layouts, shared between values.

The steps of a resharding depend only on which placements are equal, so a pair of layouts is reduced
to a pattern whose shard placements are numbered by first appearance: a few thousand patterns cover
every pair of every value, and each is expanded once. The cost of a step depends on its kind, its
axis and the other axes that shard the value, so values of one cost class share a table.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from math import inf, prod

import numpy as np
from numpy.typing import NDArray

from ....ir.errors import PlaitError
from ....ir.model.layout import (
    PARTIAL,
    REPLICATE,
    AxisPlacement,
    Layout,
    ReshardStep,
    reshard_steps,
)
from ..problem import BulkCosts, Costs
from .node_strategies import Ints

Floats = NDArray[np.float64]
Signature = tuple[str, int, frozenset[int]]  # kind, axis, axes that shard the value before
REPLICATED, PARTIAL_SUM, FIRST_SHARD = (
    0,
    1,
    2,
)  # codes of placements; shards are numbered from FIRST_SHARD
NO_STEP, UNREACHABLE = -2, -1  # step numbers of "nothing to do" and "impossible"


class ReshardTables:
    """Tables of transition seconds for one problem over `axes` mesh axes."""

    def __init__(self, costs: Costs, axes: int) -> None:
        self.costs, self.axes = costs, axes
        self.signatures: dict[Signature, int] = {}
        self.steps: list[ReshardStep] = []
        # the radix of a pattern's digit: R, P, and one more shard code than positions before it
        self.radices = [FIRST_SHARD + 1 + place for place in range(2 * axes)]
        self.seen = np.full(prod(self.radices), -1)
        self.walks: list[list[int]] = []
        self.padded: Ints = np.zeros((0, 1), dtype=np.int64)
        self.shapes: dict[Hashable, Ints] = {}
        self.tables: dict[Hashable, Floats] = {}

    def table(
        self, value: int, rows: Ints, columns: Ints, placements: tuple[AxisPlacement, ...]
    ) -> Floats:
        """Seconds from each layout of `rows` to each of `columns`; equal requests share one array.

        A layout is a number whose digits, one per axis, index `placements`: R, P, shards.
        """
        have, want = (_digits(numbers, len(placements), self.axes) for numbers in (rows, columns))
        if not isinstance(self.costs, BulkCosts):
            sources, targets = (_layouts(digits, placements) for digits in (have, want))
            return np.array([[self.seconds(value, a, b) for b in targets] for a in sources])
        return self.shared(self.costs.cost_class(value), value, have, want)

    def seconds(self, value: int, have: Layout, want: Layout) -> float:
        """Seconds of one resharding of one value; infinite where it is impossible."""
        try:
            steps = reshard_steps(have, want)
        except (PlaitError, KeyError):
            return inf
        return sum((self.costs.step(value, step) for step in steps), 0.0)

    def shared(self, cost_class: Hashable, value: int, have: Ints, want: Ints) -> Floats:
        """Table shared by every value of a cost class that has these layouts."""
        shape = (have.tobytes(), want.tobytes(), have.shape)
        key = (cost_class, shape)
        if key not in self.tables:
            if shape not in self.shapes:
                self.shapes[shape] = self.shape(have, want)
            prices = np.array([self.costs.step(value, step) for step in self.steps] + [0.0, inf])
            self.tables[key] = prices[self.padded].sum(axis=1)[self.shapes[shape]]
        return self.tables[key]

    def shape(self, have: Ints, want: Ints) -> Ints:
        """Pattern number of every pair of layouts."""
        numbers = _patterns(have, want, self.radices)
        for number in np.unique(numbers[self.seen[numbers] < 0]):
            self.seen[number] = len(self.walks)
            self.walks.append(self.walk(int(number)))
        if len(self.padded) < len(self.walks):
            longest = max(map(len, self.walks))
            self.padded = np.array([[*w, *[NO_STEP] * (longest - len(w))] for w in self.walks])
        return self.seen[numbers]

    def walk(self, number: int) -> list[int]:
        """Step numbers of one pattern, padded to at least one by NO_STEP."""
        pattern: list[int] = []
        for radix in reversed(self.radices):
            number, digit = divmod(number, radix)
            pattern.insert(0, digit)
        steps = _walk(tuple(pattern))
        return (
            [UNREACHABLE] if steps is None else [self.number(step) for step in steps] or [NO_STEP]
        )

    def number(self, step: ReshardStep) -> int:
        sharded = frozenset(i for i, s in enumerate(step.before) if isinstance(s, tuple))
        signature = (step.kind, step.axis, sharded)
        if signature not in self.signatures:
            self.signatures[signature] = len(self.steps)
            self.steps.append(step)
        return self.signatures[signature]


def _layouts(digits: Ints, placements: tuple[AxisPlacement, ...]) -> list[Layout]:
    """The layouts of rows of digits: [layouts, axes]."""
    rows: list[list[int]] = digits.tolist()
    return [tuple(placements[digit] for digit in row) for row in rows]


@cache
def _walk(pattern: tuple[int, ...]) -> tuple[ReshardStep, ...] | None:
    """Resharding steps between the two halves of a pattern, or None where impossible."""
    layout: Layout = tuple(
        REPLICATE
        if code == REPLICATED
        else PARTIAL
        if code == PARTIAL_SUM
        else (0, code - FIRST_SHARD)
        for code in pattern
    )
    half = len(pattern) // 2
    try:
        return reshard_steps(layout[:half], layout[half:])
    except (PlaitError, KeyError):
        return None


def _digits(numbers: Ints, base: int, axes: int) -> Ints:
    """Layouts as rows of digits, one per axis."""
    return np.stack([numbers // base**k % base for k in reversed(range(axes))], axis=1)


def _patterns(have: Ints, want: Ints, radices: list[int]) -> Ints:
    """Pattern codes of pairs [have, want]: shard placements numbered by first appearance."""
    shape = (len(have), len(want))
    digits = [column[:, None] for column in have.T] + [column[None, :] for column in want.T]
    codes: list[Ints] = []
    fresh = np.full((1, 1), FIRST_SHARD)
    number = np.zeros((1, 1), dtype=np.int64)
    for place, (digit, radix) in enumerate(zip(digits, radices, strict=True)):
        code, seen = digit, digit < FIRST_SHARD
        for earlier in range(place):
            same = (digits[earlier] == digit) & (digit >= FIRST_SHARD)
            code, seen = np.where(same, codes[earlier], code), seen | same
        code = np.where(seen, code, fresh)
        fresh = fresh + ~seen
        codes.append(code)
        number = number * radix + code
    return np.broadcast_to(number, shape)
