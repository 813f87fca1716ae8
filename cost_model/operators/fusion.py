"""Operator fusion: connected operators of fusible kinds with no matrix product between share a
kernel.

    mm ─ add ─ gelu ─ mm        add and gelu: one kernel that reads mm's result once
         └── sum                and the sum joins them

The depth of a value is the number of unfusible kernels on the longest path to it. Operators of one
depth can share a kernel without a cycle, since a path through another kernel raises the depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...ir.model.loops import Work
from ...ir.model.model import Op


class FusedKernel(msgspec.Struct, frozen=True):
    """Operators that run as one kernel, by position, and the values read from and written to
    memory."""

    ops: tuple[int, ...]
    moved_values: tuple[int, ...]


def fuse(
    ops: Sequence[Op],
    works: Sequence[Work],
    roots: Sequence[int],
    live_out: set[int],
    fusible: tuple[Work, ...] = ("pointwise", "reduce"),
) -> tuple[FusedKernel, ...]:
    """Kernels of the operators whose work is `fusible`; `roots` is the storage of each value;
    `live_out` values are read later. Operators whose work is "view" are left out."""
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
        FusedKernel(tuple(places), _moved_values(ops, roots, live_out, readers, group, places))
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


def _moved_values(
    ops: Sequence[Op],
    roots: Sequence[int],
    live_out: set[int],
    readers: dict[int, set[int]],
    group: int,
    places: Sequence[int],
) -> tuple[int, ...]:
    produced = {roots[r] for at in places for r in ops[at].results if r >= 0}
    read = {roots[v] for at in places for v in ops[at].operands()} - produced
    written = {v for v in produced if v in live_out or readers.get(v, set()) - {group}}
    return (*sorted(read), *sorted(written))
