"""Liveness: what operators need, read and produce, until when, and whose memory values share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from .. import ops as _declarations  # noqa: F401  # pyright: ignore[reportUnusedImport]  (registers)
from ..model.loops import declaration, site_of
from ..model.model import Op
from ..model.tensor import TensorType


class Needed:
    """The operators that compute `wanted` from `known` values: their `numbers`, in order, and the
    `live` values that they compute or read."""

    def __init__(
        self, ops: Sequence[Op], wanted: Collection[int], known: Collection[int] = frozenset()
    ) -> None:
        self.live = set(wanted).difference(known)
        self.numbers: list[int] = []
        for number in reversed(range(len(ops))):
            op = ops[number]
            if not self.live.isdisjoint(op.results):
                self.live.update(v for v in op.operands() if v not in known)
                self.numbers.append(number)
        self.numbers.reverse()

    def pruned(self, op: Op) -> Op:
        """The operator with -1 for results that nothing reads."""
        results = tuple(r if r in self.live else -1 for r in op.results)
        return op if results == op.results else replace(op, results=results)


def needed_ops(
    ops: Sequence[Op], wanted: Collection[int], known: Collection[int] = frozenset()
) -> tuple[Op, ...]:
    """The operators that compute `wanted` from `known` values, in order; unread results become -1."""
    needed = Needed(ops, wanted, known)
    return tuple(needed.pruned(ops[number]) for number in needed.numbers)


def read_values(ops: Iterable[Op]) -> set[int]:
    """Values that the operators read."""
    return {v for op in ops for v in op.operands()}


def produced_values(ops: Iterable[Op]) -> set[int]:
    """Values that the operators compute."""
    return {r for op in ops for r in op.results if r >= 0}


def last_uses(ops: Sequence[Op], retained: Collection[int]) -> list[tuple[int, ...]]:
    """Per operator, the values that nothing reads afterwards (and that are not `retained`)."""
    seen, last = set(retained), list[tuple[int, ...]]()
    for op in reversed(ops):
        ending: list[int] = []
        for value in (*op.operands(), *(r for r in op.results if r >= 0)):
            if value not in seen:
                seen.add(value)
                ending.append(value)
        last.append(tuple(ending))
    return last[::-1]


BEFORE = -1  # when a value is born that no operator of a list computes


class Lifetime(NamedTuple):
    """Positions in a list of operators: of the one that computes a value, of the last that has it."""

    born: int
    last: int


def lifetimes(
    ops: Iterable[Op], roots: Sequence[int], waits: Mapping[int, int] | None = None
) -> dict[int, Lifetime]:
    """Lifetimes of the storages that operators read or fill, by root, in the order of their first use.

    `waits`: positions up to which operators that run beside others keep what they read.
    """
    lives: dict[int, Lifetime] = {}
    for at, op in enumerate(ops):
        until = waits.get(at, at) if waits else at
        for value in op.operands():
            born, last = lives.get(roots[value], (BEFORE, at))
            lives[roots[value]] = Lifetime(born, max(last, until))
        for value in op.results:
            if value >= 0:
                born, last = lives.get(roots[value], (at, at))
                lives[roots[value]] = Lifetime(born, max(last, at))
    return lives


IN_PLACE = frozenset({"comm.place", "comm.add"})  # write to their first operand, if there is one


def writes_in_place(op: Op) -> bool:
    """Whether an operator writes to its first operand."""
    return op.target in IN_PLACE and op.args[0] is not None


def is_view(op: Op, types: Sequence[TensorType]) -> bool:
    """Whether the result of an operator is in the memory of the first tensor that it reads."""
    if not op.operands():
        return False
    if op.target in IN_PLACE:
        return writes_in_place(op)
    declared = declaration(site_of(op, types))
    return declared is not None and declared.work == "view"


def storage_roots(values: int, views: Iterable[Op]) -> list[int]:
    """For each of so many values, the value whose memory it uses: itself, or the base of a view.

    `views`: the operators that are views, in order.
    """
    roots = list(range(values))
    for op in views:
        for result in op.results:
            if result >= 0:
                roots[result] = roots[op.operands()[0]]
    return roots
