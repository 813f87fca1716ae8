"""Shapes of plans for a fleet: how wide crews are, and how they stand in lines.

Every part is cut into crews of one width. Crews are dealt out to lines, the strongest lines of each
part's share to those that have least so far; in a line, parts stand one after the other, in any order.

    2 a, 3 b in 1 line    a a b b b   |  b b b a a
    in 2 lines            a b / a b b |  b a / b b a
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations, product

from ...ir.devices.heterogeneous import Fleet
from .group_prices import Kind

Row = tuple[Kind, ...]  # the crews of a line, in order
Shape = tuple[Row, ...]
MOST_ORDERS = 6  # of the parts in a line
MOST_STAGES = 64


def shapes(fleet: Fleet, strength: Sequence[float]) -> Iterator[Shape]:
    """Every shape that uses all parts; `strength` of one device of each."""
    widths = [widths_of(part.devices) for part in fleet.parts]
    for chosen in product(*widths):
        kinds = [Kind(number, width) for number, width in enumerate(chosen)]
        counts = [part.devices // width for part, width in zip(fleet.parts, chosen, strict=True)]
        seen: set[Shape] = set()
        for lines in range(1, sum(counts) + 1):
            dealt = deal(kinds, counts, strength, lines)
            for order in list(permutations(range(len(kinds))))[:MOST_ORDERS]:
                shape = tuple(
                    tuple(kinds[part] for part in order for _ in range(row[part])) for row in dealt
                )
                if (
                    max(map(len, shape)) <= MOST_STAGES
                    and min(map(len, shape))
                    and shape not in seen
                ):
                    seen.add(shape)
                    yield shape


def widths_of(devices: int) -> list[int]:
    """Widths of crews: those that leave no device out, and pairs of a number that is odd."""
    even = [n for n in range(1, devices + 1) if devices % n == 0]
    return even + [n for n in (2, 4) if n < devices and devices % n and devices // n > 0]


def deal(
    kinds: Sequence[Kind], counts: Sequence[int], strength: Sequence[float], lines: int
) -> list[list[int]]:
    """How many crews of every kind each line gets."""
    dealt = [[0] * len(kinds) for _ in range(lines)]
    power = [0.0] * lines
    by_strength = sorted(range(len(kinds)), key=lambda k: -kinds[k].width * strength[kinds[k].part])
    for k in by_strength:
        more, left = divmod(counts[k], lines)
        weakest = sorted(range(lines), key=lambda n: (power[n], n))
        for place, n in enumerate(weakest):
            own = more + (place < left)
            dealt[n][k] = own
            power[n] += own * kinds[k].width * strength[kinds[k].part]
    return dealt
