"""Factorisations of a dimension, outermost factor first: common refinements, and where factors end up.

4 · 6  and  2 · 12   ──▶   2 · 2 · 6        factor 1 of the first is factor 2 of the refinement
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from math import prod
from operator import mul

Factorisation = tuple[int, ...]


def common_refinement(one: Factorisation, other: Factorisation) -> Factorisation | None:
    """The coarsest factorisation that refines both; None where there is none."""
    if one == other:
        return one
    if prod(one) != prod(other):
        return None
    ends = sorted({1, *accumulate(one, mul), *accumulate(other, mul)})
    if any(inner == 0 or outer % inner for inner, outer in pairwise(ends)):
        return None
    return tuple(outer // inner for inner, outer in pairwise(ends))


def refined_index(factors: Factorisation, refined: Factorisation, index: int) -> int | None:
    """The first of the `refined` factors that make up factor `index`; None where it begins inside of
    one of them."""
    outside, size = prod(factors[:index]), 1
    for place, factor in enumerate(refined):
        if size == outside:
            return place
        size *= factor
    return None
