"""The ways of running one stage that no other beats: counts of choices, found breadth first.

Choices are decided one after the other, how many layers take each. A partial way is dropped when
the curves of what is left say that it cannot fit, or that no step with it is below the limit. Where
too many remain, those with the lowest floors do, and the least floor of the others is the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .problem import Choice, Counts, Layers, Stage
from .relaxation import NOTHING, Curve, hull, together

Reals = NDArray[np.float64]
Floor = Callable[[Reals, Reals], Reals]  # of a step, by seconds and synchronised seconds of a stage


class Front(NamedTuple):
    """Ways of running a stage, one a row, by seconds: counts of `choices` in their order."""

    seconds: Reals
    synchronised: Reals
    counts: NDArray[np.int64]
    choices: tuple[tuple[int, int], ...]  # the layers and the choice a column is of
    bound: float  # the least floor of ways that were not looked at

    def row(self, stage: Stage, index: int) -> tuple[Counts, ...]:
        """One way as a solution has it."""
        made = [[0] * len(layers.choices) for layers in stage.layers]
        for (layers, choice), count in zip(self.choices, self.counts[index], strict=True):
            made[layers][choice] = int(count)
        return tuple(map(tuple, made))


class Curves(NamedTuple):
    """Bounds of what is left to decide, after so many layers of a run."""

    seconds: Curve
    synchronised: Curve


FREE = Curves(NOTHING, NOTHING)


class Rows(NamedTuple):
    """Partial ways: what they hold, take, and how many layers of the run are left."""

    held: Reals
    seconds: Reals
    synchronised: Reals
    left: NDArray[np.int64]
    counts: NDArray[np.int64]
    floor: Reals

    def only(self, keep: NDArray[np.bool_] | NDArray[np.intp]) -> Rows:
        return Rows(
            self.held[keep],
            self.seconds[keep],
            self.synchronised[keep],
            self.left[keep],
            self.counts[keep],
            self.floor[keep],
        )

    def taking(self, choice: Choice, taken: NDArray[np.int64]) -> Rows:
        return Rows(
            self.held + taken * choice.held_bytes,
            self.seconds + taken * choice.seconds,
            self.synchronised + taken * choice.synchronised_seconds,
            self.left - taken,
            np.column_stack([self.counts, taken]),
            self.floor,
        )


def useful(layers: Layers) -> list[int]:
    """Choices that no other of these layers beats or equals in everything."""
    kept: list[int] = []
    faces = [(c.seconds, c.synchronised_seconds, c.held_bytes) for c in layers.choices]
    for index in sorted(range(len(faces)), key=faces.__getitem__):
        mine = faces[index]
        if not any(all(a <= b for a, b in zip(faces[k], mine, strict=True)) for k in kept):
            kept.append(index)
    return kept


def curves(stage: Stage) -> Curves:
    """What a stage's layers take at least, over the bytes that they hold."""
    return _rest(stage, 0)


def front(stage: Stage, floor: Floor, limit: float, width: int) -> Front:
    """Ways that fit, below the limit, that no other beats in both seconds; all, unless at some
    point there are more than `width`."""
    names: list[tuple[int, int]] = []
    rows, bound = _start(stage), math.inf
    for number, layers in enumerate(stage.layers):
        rows = rows._replace(left=np.full(len(rows.left), layers.count))
        behind, order = _rest(stage, number + 1), useful(layers)
        for place, index in enumerate(order):
            choice, after = layers.choices[index], [layers.choices[k] for k in order[place + 1 :]]
            rows = rows.taking(choice, rows.left) if not after else _spread(rows, choice)
            names.append((number, index))
            rows = _fitting(rows, after, behind, stage.free_bytes, floor)
            rows = rows.only(rows.floor < limit)
            rows, dropped = _narrow(rows, width)
            bound = min(bound, dropped)
    return _undominated(rows, tuple(names), bound)


def _start(stage: Stage) -> Rows:
    zero, none = np.zeros(1), np.zeros(1, np.int64)
    seconds, synchronised = zero + stage.seconds, zero + stage.synchronised_seconds
    return Rows(zero, seconds, synchronised, none, np.zeros((1, 0), np.int64), zero)


def _narrow(rows: Rows, width: int) -> tuple[Rows, float]:
    if len(rows.floor) <= width:
        return rows, math.inf
    order = np.argsort(rows.floor, kind="stable")
    return rows.only(order[:width]), float(rows.floor[order[width]])


def _rest(stage: Stage, start: int) -> Curves:
    """Curves of all layers of a stage from one on."""
    runs = [_curves(layers.choices, layers.count) for layers in stage.layers[start:]]
    return Curves(*(together(own) for own in zip(*runs, strict=True))) if runs else FREE


def _curves(choices: tuple[Choice, ...] | list[Choice], count: int) -> Curves:
    sizes = [c.held_bytes for c in choices]
    return Curves(
        hull(sizes, [c.seconds for c in choices]).times(count),
        hull(sizes, [c.synchronised_seconds for c in choices]).times(count),
    )


def _spread(rows: Rows, choice: Choice) -> Rows:
    """Each row once for every number of layers that may take a choice."""
    which = np.repeat(np.arange(len(rows.left)), rows.left + 1)
    first = np.concatenate([[0], np.cumsum(rows.left + 1)[:-1]])
    return rows.only(which).taking(choice, np.arange(len(which)) - first[which])


def _fitting(rows: Rows, after: list[Choice], behind: Curves, free: int, floor: Floor) -> Rows:
    """Rows that may still fit, with floors by the curves of what is left."""
    if not after:
        return _kept(rows, behind, free, floor)
    whole = _curves(after, 1)
    parts = [
        _kept(rows.only(rows.left == left), _joined(whole, int(left), behind), free, floor)
        for left in np.unique(rows.left)
    ]
    return Rows(*map(np.concatenate, zip(*parts, strict=True))) if parts else rows


def _joined(whole: Curves, left: int, behind: Curves) -> Curves:
    return Curves(*(together([w.times(left), b]) for w, b in zip(whole, behind, strict=True)))


def _kept(rows: Rows, rest: Curves, free: int, floor: Floor) -> Rows:
    rows = rows.only(free - rows.held >= rest.seconds.size[0])
    room = free - rows.held
    least = rows.seconds + rest.seconds.at(room)
    return rows._replace(floor=floor(least, rows.synchronised + rest.synchronised.at(room)))


def _undominated(rows: Rows, names: tuple[tuple[int, int], ...], bound: float) -> Front:
    """Rows by seconds, of which each needs less synchronised seconds than all before."""
    rows = rows.only(np.lexsort((rows.held, rows.synchronised, rows.seconds)))
    rows = rows.only(np.array(list(_falling(rows.synchronised)), np.intp))
    return Front(rows.seconds, rows.synchronised, rows.counts, names, bound)


def _falling(values: Reals) -> Iterator[int]:
    least = np.inf
    for index, value in enumerate(values):
        if value < least:
            least = value
            yield index
