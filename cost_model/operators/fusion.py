"""Which operators share a kernel: connected ones of fusible kinds with no product between.

    mm ─ add ─ gelu ─ mm        add and gelu: one kernel, which reads mm's result once
         └── sum                and the sum joins them

A value's depth is the number of kernels that can never fuse on the way to it. Operators that meet
at one depth can share a kernel without a circle, since a way through another kernel raises the depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...ir.loops import Work
from ...ir.model import Op


class Kernel(msgspec.Struct, frozen=True):
    """Operators that run as one, by position, and the values that move to and from memory."""

    ops: tuple[int, ...]
    moved: tuple[int, ...]


def fuse(
    ops: Sequence[Op],
    works: Sequence[Work],
    roots: Sequence[int],
    kept: set[int],
    fusible: tuple[Work, ...] = ("pointwise", "reduce"),
) -> tuple[Kernel, ...]:
    """Kernels of the operators whose work is `fusible`; `roots` names the memory of each value,
    `kept` values are read later. Views take no part: `works` of what is left out is "view"."""
    groups = _groups(ops, works, roots, fusible)
    readers: dict[int, set[int]] = {}
    for at, op in enumerate(ops):
        if works[at] != "view":
            for value in op.operands():
                readers.setdefault(roots[value], set()).add(groups.get(at, -1 - at))
    members: dict[int, list[int]] = {}
    for at, group in groups.items():
        members.setdefault(group, []).append(at)
    return tuple(
        Kernel(tuple(places), _moved(ops, roots, kept, readers, group, places))
        for group, places in members.items()
    )


def _groups(
    ops: Sequence[Op], works: Sequence[Work], roots: Sequence[int], fusible: tuple[Work, ...]
) -> dict[int, int]:
    """The group of every fusible operator, named by its first one."""
    depth: dict[int, int] = {}
    maker: dict[int, int] = {}
    parent: dict[int, int] = {}

    def find(at: int) -> int:
        while parent[at] != at:
            at = parent[at]
        return at

    for at, op in enumerate(ops):
        if works[at] == "view":
            continue
        sources = {roots[v] for v in op.operands()}
        here = max((depth.get(v, 0) for v in sources), default=0)
        joins = works[at] in fusible
        if joins:
            parent[at] = at
            for value in sources:
                if value in maker and depth[value] == here:
                    first, second = sorted((find(maker[value]), find(at)))
                    parent[second] = first
        for result in op.results:
            if result >= 0:
                depth[roots[result]] = here + (not joins)
                if joins:
                    maker[roots[result]] = at
    return {at: find(at) for at in parent}


def _moved(
    ops: Sequence[Op],
    roots: Sequence[int],
    kept: set[int],
    readers: dict[int, set[int]],
    group: int,
    places: Sequence[int],
) -> tuple[int, ...]:
    made = {roots[r] for at in places for r in ops[at].results if r >= 0}
    read = {roots[v] for at in places for v in ops[at].operands()} - made
    written = {v for v in made if v in kept or readers.get(v, set()) - {group}}
    return (*sorted(read), *sorted(written))
