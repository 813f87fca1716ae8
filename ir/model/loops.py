"""Loop declarations of operators, from which sharding, cost and shapes are derived.

    mm:  [m k], [k n] -> [m n]        k is walked by no result, so splitting it leaves partial sums

A dimension is a list of loops, outermost first: `[(b s) h]` merges two. Loops come in four kinds:
`split` may be split over devices or in time (a result that does not carry the loop is then a
partial sum), `mean` likewise but the result is an average, `joint` may be split over devices by an
operator that joins its results over them itself (a softmax over a split loop), `whole` may not be
split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, TypedDict, Unpack

import msgspec

from .model import Op
from .tensor import TensorType

LoopKind = Literal["split", "mean", "joint", "whole"]
Dim = tuple[str, ...]
Dims = tuple[Dim, ...]
ShardOffsets = tuple[tuple[int, Dims], ...]
Paired = Literal["experts", "rows"]
Work = Literal["gemm", "attention", "convolution", "pointwise", "reduce", "move", "view"]


class Loop(msgspec.Struct, frozen=True, array_like=True):
    name: str
    size: int
    kind: LoopKind = "split"


class OperatorCollective(msgspec.Struct, frozen=True):
    """A collective inside an operator when it is split: `times` tensors of these dims, and `copies` of
    each element, to ranks that the data choose."""

    kind: Literal["all_reduce", "all_to_all"]
    dims: Dims
    item_bytes: int
    times: float = 1.0
    copies: int = 1


class RoutedRows(msgspec.Struct, frozen=True):
    """Rows that a token sends to `choices` of `experts`. `saved`: elements of a row that backward reads
    where forward leaves them, by loops; `repeated`: the part of the flops that it repeats otherwise."""

    choices: int
    experts: int
    saved: tuple[tuple[str, float], ...] = ()
    repeated: float = 0.0


class Loops(msgspec.Struct, frozen=True):
    """The declaration of one operator at one site.

    `inputs` has one entry per `Op.operands()` entry, `outputs` one per result. `linear` lists groups
    of operands: when exactly those are partial sums, the results are partial sums too.
    `shapes` says which literal arguments are sizes of dims, to be rebuilt when a loop is split.
    `flops` is the count per point of the whole loop nest; `work` picks the efficiency curve.
    `shard_offsets` is set where the result depends on the position of a shard in the global tensor
    (random masks, rows of a table): positions of literal arguments, and the dims that they locate.
    `pairs` are loops that one mesh axis may split together, the operator sending its data from the
    shards of the one to the shards of the other and back: tokens and experts, or as `paired` says
    look-ups and rows of a table. `exchanges` is what
    an operator sends under a joint loop or a pair. `streamed`: elements that its kernels write for one
    another and read, by loops: how often each point passes through memory. `added_to`: operands that
    results begin from: where a split leaves partial sums, they are partial sums as well. `routing`: rows
    that choose experts.
    """

    loops: tuple[Loop, ...]
    inputs: tuple[Dims, ...]
    outputs: tuple[Dims, ...]
    linear: tuple[tuple[int, ...], ...] = ()
    shapes: tuple[tuple[int, Dims], ...] = ()
    work: Work = "pointwise"
    flops: float = 1.0
    shard_offsets: ShardOffsets = ()
    pairs: tuple[tuple[str, str], ...] = ()
    exchanges: tuple[OperatorCollective, ...] = ()
    streamed: tuple[tuple[Dim, float], ...] = ()
    added_to: tuple[int, ...] = ()
    routing: RoutedRows | None = None
    paired: Paired = "experts"

    def size(self, name: str) -> int:
        return next(loop.size for loop in self.loops if loop.name == name)


class Site(msgspec.Struct, frozen=True):
    """One operator where it stands: itself, and the types of what it reads and makes."""

    op: Op
    operands: tuple[TensorType, ...]
    results: tuple[TensorType | None, ...]


def site_of(op: Op, types: Sequence[TensorType]) -> Site:
    """The site of an operator among values of these types."""
    return Site(
        op,
        tuple(types[v] for v in op.operands()),
        tuple(types[v] if v >= 0 else None for v in op.results),
    )


Declare = Callable[[Site], Loops | None]
OPERATORS: dict[str, Declare] = {}
SHARD_AWARE: dict[
    str, str
] = {}  # `comm.*` variant -> operator, for operators that need their shard's offset


def declare(*targets: str, shard_aware: bool = False) -> Callable[[Declare], Declare]:
    """Register one declaration for one or more targets.

    `shard_aware`: when split, the operator runs as `comm.<name>`, which is told its shard's offset.
    """

    def register(function: Declare) -> Declare:
        for target in targets:
            assert target not in OPERATORS, f"{target} is declared twice"
            OPERATORS[target] = function
            if shard_aware:
                SHARD_AWARE[shard_aware_name(target)] = target
        return function

    return register


def shard_aware_name(target: str) -> str:
    """Name of the shard-aware variant: `comm.attention` of `plait.attention.default`."""
    return "comm." + target.split(".")[1]


def declaration(site: Site) -> Loops | None:
    """The loops of an operator, or None when it is opaque: replicated, and still correct."""
    function = OPERATORS.get(SHARD_AWARE.get(site.op.target, site.op.target))
    return function(site) if function else None


class LoopFacts(TypedDict, total=False):
    """What a declaration says beside its loops: the fields of `Loops` that have a default."""

    linear: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, Dims], ...]
    work: Work
    flops: float
    shard_offsets: ShardOffsets
    pairs: tuple[tuple[str, str], ...]
    exchanges: tuple[OperatorCollective, ...]
    streamed: tuple[tuple[Dim, float], ...]
    added_to: tuple[int, ...]
    routing: RoutedRows
    paired: Paired


def loops(
    pattern: str,
    site: Site,
    *,
    kinds: dict[str, LoopKind] | None = None,
    sizes: dict[str, int] | None = None,
    **facts: Unpack[LoopFacts],
) -> Loops:
    """Build a declaration from `"[m k], [k n] -> [m n]"` and the shapes at the site.

    `!` after a loop makes it unsplittable, `1` is a dimension without a loop. A merged dimension
    `(c d)` needs all but one of its loops' sizes known from other dimensions, or from `sizes`.
    """
    unsplit, inputs, outputs = _parsed(pattern)
    types = (*site.operands, *site.results)
    assert len(types) == len(inputs) + len(outputs), f"{site.op.target}: {pattern} at {types}"
    found = _solve((*inputs, *outputs), types, site.op.target, sizes or {})
    kinds = {**dict.fromkeys(unsplit, "whole"), **(kinds or {})}
    declared = tuple(Loop(name, size, kinds.get(name, "split")) for name, size in found.items())
    return Loops(declared, inputs, outputs, **facts)


@lru_cache(1 << 12)
def _parsed(pattern: str) -> tuple[frozenset[str], tuple[Dims, ...], tuple[Dims, ...]]:
    """The loops of a pattern that cannot be split, and the dimensions of operands and results."""
    unsplit = frozenset(name.rstrip("!") for name in re.findall(r"\w+!", pattern))
    inputs, outputs = (
        tuple(_dims(t) for t in re.findall(r"\[([^\]]*)\]", side)) for side in pattern.split("->")
    )
    return unsplit, inputs, outputs


def _dims(text: str) -> Dims:
    dims: list[Dim] = []
    for merged, single in re.findall(r"\(([^)]*)\)|(\S+)", text):
        names = (merged or single).split()
        dims.append(tuple(name.rstrip("!") for name in names if name != "1"))
    return tuple(dims)


def _solve(
    dims: tuple[Dims, ...], types: tuple[TensorType | None, ...], where: str, known: dict[str, int]
) -> dict[str, int]:
    sizes = dict(known)
    waiting: list[tuple[Dim, int]] = []
    for tensor, type_ in zip(dims, types, strict=True):
        if type_ is None:
            continue
        assert len(tensor) == len(type_.shape), f"{where}: {tensor} at {type_}"
        waiting += zip(tensor, type_.shape, strict=True)
    waiting.sort(key=lambda pair: len(pair[0]))
    while waiting:
        for item in waiting:
            dim, size = item
            unknown = [name for name in dim if name not in sizes]
            if len(unknown) > 1:
                continue
            product = 1
            for name in dim:
                product *= sizes.get(name, 1)
            if unknown:
                assert size % product == 0, f"{where}: {dim} of {size}"
                sizes[unknown[0]] = size // product
            else:
                assert product == size, f"{where}: {dim} is {product}, not {size}"
            waiting.remove(item)
            break
        else:
            raise AssertionError(f"{where}: sizes of {waiting} are not determined")
    return sizes
