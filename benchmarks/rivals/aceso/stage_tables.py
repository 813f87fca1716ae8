"""Sums over operators of one micro-batch size, and patterns of recomputed operators.

A pattern marks operators for one price of memory: cheaper is to run them again than to pay for what
they keep. Between two neighbouring prices a stage mixes both patterns, the dearer first, so its
time is linear in the memory that it must save (a Lagrangian relaxation of the knapsack).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from plait.benchmarks.rivals.aceso.judge import CLOSING, activation_factor
from plait.benchmarks.rivals.aceso.plan import Degrees
from plait.benchmarks.rivals.aceso.profile import AcesoModel, Operators, Reals, Variant
from plait.benchmarks.rivals.aceso.resharding import reshard_ms

T = TypeVar("T")
PRICES = 48  # of memory, at which operators are marked
MOST_PATTERNS = 12
LEAST_MIXES, MIXED_OPERATORS = 4, 2400  # that change degrees; more of them for short chains
MOST_MIXED = 2000  # operators: longer chains repeat equal layers under equal degrees
RUN_SHARES = (np.inf, 0.5, 0.25)  # of the largest layer's activations: limits of one run
ALGORITHMS = (0, 1)
Flags = NDArray[np.bool_]


class Pattern(msgspec.Struct, frozen=True):
    """Operators marked for recomputation, and what that takes and saves before each operator."""

    flags: Flags
    again_us: Reals  # of operators before
    saved_mb: Reals  # by operators before, where the next is marked too
    run_mb: Reals  # of the run up to an operator


class OperatorTables(msgspec.Struct, frozen=True):
    """Operators of one micro-batch under degrees of each; sums are over operators before.

    patterns: by limit of a run, then by rising price of memory
    """

    degrees: tuple[Degrees, ...]
    operators: Operators
    busy_us: Reals
    weights_mb: Reals
    stored_mb: Reals
    values_mb: Reals  # what an operator keeps
    closes: Flags  # whether a run ends with an operator
    inside_us: Reals  # to send what an operator takes, within a machine
    between_us: Reals
    sent_inside_us: Reals  # what an operator gives
    sent_between_us: Reals
    patterns: tuple[tuple[Pattern, ...], ...]


def tables(model: AcesoModel, micro_batch: int, sizes: Sequence[int]) -> list[OperatorTables]:
    """Tables of stages on so many GPUs: every measured choice of degrees, and mixes of them."""
    by_degree = list[OperatorTables]()
    for gpus in sizes:
        uniform = list[OperatorTables]()
        for degrees in choices(gpus):
            key = Variant(micro_batch // degrees.data, degrees.tensor, degrees.algorithm)
            if micro_batch % degrees.data == 0 and key in model.variants:
                each = (degrees,) * len(model.names)
                uniform.append(_tables(model, each, model.variants[key]))
        by_degree += uniform
        if len(uniform) > 1 and len(model.names) <= MOST_MIXED:
            by_degree += _mixed(model, uniform)
    closes = _closes(model)
    return [
        replace(table, patterns=patterns)
        for table, patterns in zip(by_degree, _all_patterns(by_degree, closes), strict=True)
    ]


def _mixed(model: AcesoModel, uniform: Sequence[OperatorTables]) -> list[OperatorTables]:
    """Degrees that change from operator to operator, by price of memory: paths with resharding."""
    moves = _moves(model, uniform)
    busy, states, saved = (
        np.array([getter(table) for table in uniform])
        for getter in (
            lambda t: np.diff(t.busy_us),
            lambda t: t.operators.weights_mb * model.family.state_copies,
            lambda t: t.values_mb,
        )
    )
    rate = float(np.median(busy.min(axis=0))) / max(float(np.median(saved.min(axis=0))), 1e-9)
    prices = [(0.0, 0.0)]
    prices += [(rate * 2.0**n, in_flight) for n in range(-8, 6) for in_flight in (1, 4)]
    costs = np.array([busy + price * (states + in_flight * saved) for price, in_flight in prices])
    most = max(LEAST_MIXES, MIXED_OPERATORS // len(model.names))
    paths = [path for path in dict.fromkeys(_paths(costs, moves)) if len(set(path)) > 1]
    return [_gathered(model, uniform, path, moves) for path in thinned(paths, most)]


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[int(n)] for n in np.linspace(0, len(items) - 1, most).round()]


def _moves(model: AcesoModel, uniform: Sequence[OperatorTables]) -> Reals:
    """Microseconds of resharding before an operator: shape [operator, one, other]."""
    seen = dict[tuple[str, str], Reals]()
    count, names = len(uniform), ("", *model.names)
    moves = np.zeros((len(model.names), count, count))
    for i, pair in enumerate(pairwise(names)):
        if i and pair not in seen:
            seen[pair] = np.array(
                [
                    [
                        1000 * reshard_ms(model, i, (one.degrees[i - 1], other.degrees[i]), size)
                        for other in uniform
                        for size in (float(other.operators.input_mb[i]),)
                    ]
                    for one in uniform
                ]
            )
        if i:
            moves[i] = seen[pair]
    return moves


def _paths(costs: Reals, moves: Reals) -> list[tuple[int, ...]]:
    """The cheapest choice of every operator: `costs` by price, choice and operator."""
    total, back = costs[:, :, 0], list[NDArray[np.intp]]()
    for i in range(1, costs.shape[2]):
        arrived = total[:, :, None] + moves[i]
        back.append(arrived.argmin(axis=1))
        total = arrived.min(axis=1) + costs[:, :, i]
    at, rows = total.argmin(axis=1), np.arange(len(costs))
    columns = [at]
    for row in reversed(back):
        at = row[rows, at]
        columns.append(at)
    return [tuple(path) for path in np.array(columns[::-1]).T.tolist()]


def _gathered(
    model: AcesoModel, uniform: Sequence[OperatorTables], path: tuple[int, ...], moves: Reals
) -> OperatorTables:
    """The table of degrees that change along a path."""
    numbers = np.arange(len(path))
    columns = {
        name: np.array([getattr(t.operators, name) for t in uniform])[list(path), numbers]
        for name in Operators.__struct_fields__
    }
    moved = np.array([0.0, *(moves[i, a, b] for i, (a, b) in enumerate(pairwise(path), 1))])
    degrees = tuple(uniform[n].degrees[0] for n in path)
    table = _tables(model, degrees, Operators(**columns))
    return replace(
        table,
        busy_us=table.busy_us + before(moved),
        inside_us=table.inside_us - moved,  # before the first operator of a stage nothing moves
        between_us=table.between_us - moved,
    )


def choices(gpus: int) -> Iterator[Degrees]:
    """Degrees whose product is a number of GPUs; one GPU knows no other algorithm."""
    tensor = 1
    while tensor <= gpus:
        for algorithm in ALGORITHMS if tensor > 1 else ALGORITHMS[:1]:
            yield Degrees(tensor, gpus // tensor, algorithm)
        tensor *= 2


def _tables(
    model: AcesoModel, degrees: tuple[Degrees, ...], operators: Operators
) -> OperatorTables:
    factors = {name: activation_factor(name) for name in set(model.names)}
    values = operators.activations_mb * np.array([factors[name] for name in model.names])
    return OperatorTables(
        degrees,
        operators,
        before(operators.forward_us + operators.backward_us),
        before(operators.weights_mb),
        before(values),
        values,
        _closes(model),
        _send_us(model, operators.input_mb, False),
        _send_us(model, operators.input_mb, True),
        _send_us(model, operators.output_mb, False),
        _send_us(model, operators.output_mb, True),
        (),
    )


def _send_us(model: AcesoModel, sizes: Reals, between: bool) -> Reals:
    different, numbers = np.unique(sizes, return_inverse=True)
    return np.array([model.send_us(size, between) for size in different.tolist()])[numbers]


def before(amounts: Reals) -> Reals:
    """Sums over all items before each, and over all."""
    return np.concatenate([[0.0], np.cumsum(amounts)])


def _closes(model: AcesoModel) -> Flags:
    """Whether a run ends with an operator because of the next one."""
    closing = {n: any(part in n for part in CLOSING) for n in set(model.names)}
    return np.array([*(closing[name] for name in model.names[1:]), False])


def _all_patterns(
    found: Sequence[OperatorTables], closes: Flags
) -> list[tuple[tuple[Pattern, ...], ...]]:
    """Patterns of all tables, by limit of a run; equal ones are left out."""
    forward = np.array([table.operators.forward_us for table in found for _ in RUN_SHARES])
    values = np.array([table.values_mb for table in found for _ in RUN_SHARES])
    shares = np.array([share for _ in found for share in RUN_SHARES])
    broken = _breaks(values, closes, shares)
    marks = _marked(forward, np.where(closes, 0.0, values), broken, _prices(forward, values))
    rows = [
        _distinct(marks[:, row], forward[row], values[row], closes) for row in range(len(values))
    ]
    count = len(RUN_SHARES)
    return [
        tuple({tuple(p.saved_mb[-1] for p in row): row for row in rows[n : n + count]}.values())
        for n in range(0, len(rows), count)
    ]


def _prices(forward: Reals, values: Reals) -> Reals:
    """Prices of memory by row, in microseconds per MB."""
    rates = np.where(values > 0, forward / np.maximum(values, 1e-9), np.nan)
    low, high = np.nanmin(rates, axis=1) / 2, np.nanmax(rates, axis=1) * 8
    return np.geomspace(low, high, PRICES).T


def _distinct(marks: Flags, forward: Reals, values: Reals, closes: Flags) -> tuple[Pattern, ...]:
    """Different patterns by rising price, from none marked; evenly thinned to `MOST_PATTERNS`."""
    found = [np.zeros(marks.shape[1], dtype=bool)]
    found += [row for one, row in pairwise([found[0], *marks]) if (one != row).any()]
    found = thinned(found, MOST_PATTERNS)
    return tuple(_pattern(flags, forward, values, closes) for flags in found)


def _breaks(values: Reals, closes: Flags, shares: Reals) -> Flags:
    """Operators that are not marked, by row, so that no run holds more than its share."""
    ends = np.flatnonzero(closes) + 1
    layer_mb = np.max([part.sum(axis=1) for part in np.split(values, ends, axis=1)], axis=0)
    whole = np.maximum(2 * values.max(axis=1), values.sum(axis=1) / 4)
    most = np.where(np.isfinite(shares), np.minimum(shares, 1e9) * layer_mb, whole)
    broken, run = np.zeros(values.shape, dtype=bool), np.zeros(len(values))
    for i, column in enumerate(values.T):
        run = run + column
        over = run > most
        broken[:, i] = over
        run = np.zeros(len(values)) if closes[i] else np.where(over, 0.0, run)
    return broken


def _marked(forward: Reals, saved: Reals, broken: Flags, prices: Reals) -> Flags:
    """Which operators to recompute, by price, row and operator: a path through marked or not.

    The cost of marking is the operator's forward; the gain, where the next is marked too, what it
    keeps times the price.
    """
    shape = (forward.shape[1], *prices.shape)
    off, on = np.zeros(prices.shape), np.full(prices.shape, np.inf)
    continues = np.zeros(shape, dtype=bool)  # marked, and the one before too
    ended = np.zeros(shape, dtype=bool)  # not marked, and the one before is
    cost = np.where(broken, np.inf, forward)
    gain = np.zeros(prices.shape)
    for i in range(shape[0]):
        joined = on - gain
        np.less(joined, off, out=continues[i])
        np.less(on, off, out=ended[i])
        new_on = np.minimum(joined, off) + cost[:, i, None]
        off, on = np.minimum(off, on), new_on
        gain = prices * saved[:, i, None]
    marks, state = np.zeros(shape, dtype=bool), on < off
    for i in reversed(range(shape[0])):
        marks[i] = state
        state = np.where(state, continues[i], ended[i])
    return marks.transpose(2, 1, 0)


def _pattern(flags: Flags, forward: Reals, values: Reals, closes: Flags) -> Pattern:
    both = flags & np.append(flags[1:], False)
    saved = np.where(both & ~closes, values, 0.0)
    resets = ~both
    resets[1:] |= closes[:-1]
    total = np.cumsum(np.where(both, values, 0.0))
    start = np.where(resets, total - np.where(both, values, 0.0), 0.0)
    run = np.where(both, total - np.maximum.accumulate(start), 0.0)
    return Pattern(flags, before(forward * flags), before(saved), run)
