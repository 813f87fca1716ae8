"""How functions are sharded: the split of every operator by name, the layouts at the boundary.

attn.c_attn    mm  [m k], [k n] -> [m n]     tp: split n          dp: split m
attn.c_proj    mm                            tp: split k          dp: split m
add                                          tp: partial 0,1      dp: split n0
layer_norm                                   tp: replicate        dp: split b
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Generic, NamedTuple, Self, TypeVar

import msgspec

from ..files.text_value import TextValue
from ..model.layout import AxisPlacement, Layout, Shard
from ..model.mesh import Mesh
from ..model.model import Function
from ..ranges import AxisSize, FewCount, Index
from .strategy import Strategy

T = TypeVar("T")
S = TypeVar("S")
U = TypeVar("U")

FACTOR = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:\.([1-9][0-9]{0,3}))?")
NUMBERS = re.compile(r"(?:0|[1-9][0-9]{0,3})(?:,(?:0|[1-9][0-9]{0,3}))*")
MOST_FACTORS = 2  # that one mesh axis splits in one operator


class LoopFactor(NamedTuple):
    """A factor of one of an operator's loops, outermost first: `n` is the first, `n.1` the second."""

    loop: str
    number: int

    def __str__(self) -> str:
        return f"{self.loop}.{self.number}" if self.number else self.loop


class OpSplit(TextValue):
    """What one mesh axis does to one operator, by name.

    replicate                 every device computes all of it
    split n, split n.1        a factor of a loop is split
    split tokens+experts      of two loops: the operator sends from the shards of one to the other's
    partial 0,1               these operands are partial sums, and so are the results
    #3                        the third but one of its strategies: files of version 1 have numbers
    """

    factors: tuple[LoopFactor, ...] = ()
    partial: tuple[int, ...] | None = None
    position: int | None = None

    @property
    def replicates(self) -> bool:
        return not self.factors and self.partial is None and not self.position

    def __str__(self) -> str:
        if self.position is not None:
            return f"#{self.position}"
        if self.partial is not None:
            return f"partial {','.join(map(str, self.partial))}".rstrip()
        return f"split {'+'.join(map(str, self.factors))}" if self.factors else "replicate"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`split n.1` as a value; raises ValueError."""
        kind, _, rest = text.partition(" ")
        split = None
        if kind == "split":
            factors = [FACTOR.fullmatch(part) for part in rest.split("+")]
            if None not in factors and len(factors) <= MOST_FACTORS:
                split = cls(tuple(LoopFactor(m[1], int(m[2] or 0)) for m in factors if m))
        elif kind == "partial" and (not rest or NUMBERS.fullmatch(rest)):
            split = cls(partial=tuple(int(n) for n in filter(None, rest.split(","))))
        elif text.startswith("#") and text[1:].isdecimal() and len(text) < 6:
            split = cls(position=int(text[1:]))
        elif text == "replicate":
            split = cls()
        if split is None or str(split) != text:
            raise ValueError(f"{text!r:.60} is no operator's split, as `split n` is")
        return split


REPLICATED = OpSplit()


@lru_cache(1 << 14)
def op_split(factors: tuple[LoopFactor, ...], partial: tuple[int, ...] | None = None) -> OpSplit:
    """The split of these factors, or of partial sums that pass through; equal ones are one object."""
    return OpSplit(factors, partial)


class Boundary(msgspec.Struct, Generic[T], frozen=True):
    """Something of every value at a function's boundary: its inputs, its outputs, and the gradients
    of both (`tangents` come in); `None` where an input or output has no gradient."""

    inputs: tuple[T, ...]
    gradients: tuple[T | None, ...]
    outputs: tuple[T, ...]
    tangents: tuple[T | None, ...]

    def map(self, change: Callable[[T], U]) -> Boundary[U]:
        """The boundary with `change` of everything."""
        return Boundary(
            tuple(map(change, self.inputs)),
            tuple(None if x is None else change(x) for x in self.gradients),
            tuple(map(change, self.outputs)),
            tuple(None if x is None else change(x) for x in self.tangents),
        )

    def join(self, other: Boundary[S], change: Callable[[T, S], U]) -> Boundary[U]:
        """The boundary with `change` of everything here and there; `None` where either has none."""

        def optional(mine: T | None, theirs: S | None) -> U | None:
            return None if mine is None or theirs is None else change(mine, theirs)

        return Boundary(
            tuple(change(x, y) for x, y in zip(self.inputs, other.inputs, strict=True)),
            tuple(optional(x, y) for x, y in zip(self.gradients, other.gradients, strict=True)),
            tuple(change(x, y) for x, y in zip(self.outputs, other.outputs, strict=True)),
            tuple(optional(x, y) for x, y in zip(self.tangents, other.tangents, strict=True)),
        )


def boundary_values(function: Function) -> Boundary[int]:
    """The values at a function's boundary."""
    return Boundary(
        tuple(i.value for i in function.inputs),
        tuple(i.gradient for i in function.inputs),
        tuple(o.value for o in function.outputs),
        tuple(o.tangent for o in function.outputs),
    )


class AxisSharding(msgspec.Struct, frozen=True):
    """Sharding along one mesh axis: the split of every operator, the placements at the boundary."""

    op_splits: tuple[OpSplit, ...]
    boundary: Boundary[AxisPlacement]


class Sharding(msgspec.Struct, frozen=True):
    """Sharding of one function over `mesh` (no stage axis; `micro` first).

    `op_splits[op][axis]` is what a mesh axis does to an operator; `boundary` has the layouts of
    inputs, outputs and their gradients.
    """

    function: str
    strategy: Strategy
    mesh: Mesh
    op_splits: tuple[tuple[OpSplit, ...], ...]
    boundary: Boundary[Layout]


def stack_splits(axes: Sequence[AxisSharding]) -> tuple[tuple[OpSplit, ...], ...]:
    """By operator, the splits along all axes."""
    return tuple(zip(*(axis.op_splits for axis in axes), strict=True))


def stack_boundary(axes: Sequence[AxisSharding]) -> Boundary[Layout]:
    """The layouts that placements along all axes make up."""
    layouts: Boundary[Layout] = axes[0].boundary.map(lambda placement: (placement,))
    for axis in axes[1:]:
        layouts = layouts.join(axis.boundary, lambda layout, placement: (*layout, placement))
    return layouts


class Chunking(msgspec.Struct, frozen=True):
    """How a function runs in `chunks`. `value_shards` says which dim and factor of its values is the
    chunked loop, which devices shard by `outer`; `sharding` is the split of the rest by chunks."""

    function: str
    chunks: FewCount
    outer: AxisSize
    value_shards: tuple[tuple[Index, Shard], ...]
    sharding: AxisSharding
