"""Views: the same elements under other dims."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..model.loops import Loops, Site, declare, loops
from .pattern import DimNames, dim_names, dims, integer, integers, pattern

RESHAPES = ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")


@declare(
    *RESHAPES,
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.unsqueeze.default",
    "aten._reshape_copy.default",
)
def view(site: Site) -> Loops | None:
    """The common factors of the grouped dims; groups that do not nest are whole."""
    result = site.results[0]
    if result is None or 0 in result.shape:
        return None
    assert site.operands[0].elements == result.elements, f"{site.operands[0]} is no {result}"
    source, target = common_factors(site.operands[0].shape, result.shape)
    shapes: tuple[tuple[int, tuple[tuple[str, ...], ...]], ...] = ()
    if site.op.target in (*RESHAPES, "aten._reshape_copy.default"):
        shapes = ((1, dims(target)),)
    elif site.op.target == "aten.unflatten.int":
        first = integer(site, 1) % len(site.operands[0].shape)
        shapes = ((2, dims(target)[first : first + len(integers(site, 2))]),)
    text = pattern([source], [target])
    return loops(text, site, linear=_linear(site), shapes=shapes, work="view", flops=0)


def common_factors(source: Sequence[int], target: Sequence[int]) -> tuple[DimNames, DimNames]:
    """Words for both shapes, as in [16384] -> [2 8192]: `(a0 a1)` and `a0 a1`.

    Dims are grouped so that groups on both sides have equal products.
    """
    left: list[list[str]] = [[] for _ in source]
    right: list[list[str]] = [[] for _ in target]
    i = j = number = 0
    while i < len(source) or j < len(target):
        first, second = i, j
        i, j = i + (i < len(source)), j + (j < len(target))
        while prod(source[first:i]) != prod(target[second:j]):
            if prod(source[first:i]) < prod(target[second:j]):
                i += 1
            else:
                j += 1
        number = _group(source, target, (first, i), (second, j), left, right, number)
    return [_dim_name(names) for names in left], [_dim_name(names) for names in right]


def _group(
    source: Sequence[int],
    target: Sequence[int],
    inside: tuple[int, int],
    outside: tuple[int, int],
    left: list[list[str]],
    right: list[list[str]],
    number: int,
) -> int:
    """Name the loops of one group of dims on both sides; returns the next free number."""
    here = [[size, dim] for dim, size in enumerate(source) if inside[0] <= dim < inside[1]]
    there = [[size, dim] for dim, size in enumerate(target) if outside[0] <= dim < outside[1]]
    pairs: list[tuple[int, int]] = []
    while here and there:
        (x, at), (y, to) = here[0], there[0]
        if x == 1 or y == 1:
            (here if x == 1 else there).pop(0)
            continue
        if x % y and y % x:
            return _apart(source, target, inside, outside, left, right, number)
        pairs.append((at, to))
        here[0][0], there[0][0] = (x // y, 1) if x > y else (1, y // x)
    for at, to in pairs:
        left[at].append(f"a{number}")
        right[to].append(f"a{number}")
        number += 1
    return number


def _apart(
    source: Sequence[int],
    target: Sequence[int],
    inside: tuple[int, int],
    outside: tuple[int, int],
    left: list[list[str]],
    right: list[list[str]],
    number: int,
) -> int:
    """A group without common factors: every dim is a whole loop of its own."""
    sides = ((source, inside, left), (target, outside, right))
    for shape, (first, last), names in sides:
        for dim in range(first, last):
            if shape[dim] != 1:
                names[dim].append(f"a{number}!")
                number += 1
    return number


def _dim_name(names: list[str]) -> str:
    return f"({' '.join(names)})" if len(names) > 1 else "".join(names) or "1"


@declare(
    "aten.permute.default",
    "aten.transpose.int",
    "aten.t.default",
    "aten.numpy_T.default",
    "aten.swapaxes.default",
    "aten.mT.default",
    "aten.movedim.int",
    "aten.movedim.intlist",
)
def permute(site: Site) -> Loops:
    source = dim_names(site.operands[0].shape)
    target = [source[dim] for dim in _order(site, len(source))]
    return loops(pattern([source], [target]), site, linear=_linear(site), work="view", flops=0)


def _order(site: Site, rank: int) -> list[int]:
    """Source dim of every result dim."""
    target, order = site.op.target, list(range(rank))
    if target == "aten.permute.default":
        return [dim % rank for dim in integers(site, 1)]
    if target.startswith("aten.movedim"):
        moved = [dim % rank for dim in integers(site, 1)]
        rest = [dim for dim in order if dim not in moved]
        for to, dim in sorted(zip((d % rank for d in integers(site, 2)), moved, strict=True)):
            rest.insert(to, dim)
        return rest
    if target in ("aten.t.default", "aten.numpy_T.default"):
        return order[::-1]
    if rank == 0:
        return order
    one, other = (-2, -1) if target == "aten.mT.default" else (integer(site, 1), integer(site, 2))
    order[one], order[other] = order[other], order[one]
    return order


@declare("aten.expand.default", "aten.broadcast_to.default")
def expand(site: Site) -> Loops:
    """New dims are loops of the result alone: every shard makes its own piece."""
    (source,), (result,) = site.operands, site.results
    assert result is not None
    target = dim_names(result.shape)
    tail = target[len(target) - len(source.shape) :]
    full = [
        "1" if size == 1 else dim_name for size, dim_name in zip(source.shape, tail, strict=True)
    ]
    text = pattern([full], [target])
    shapes = ((1, dims(target)),)
    return loops(text, site, linear=_linear(site), shapes=shapes, work="view", flops=0)


@declare("aten.repeat.default")
def repeat(site: Site) -> Loops:
    """Copies are the outer loop of a dim."""
    (source,) = site.operands
    counts = integers(site, 1)
    copies = dim_names(counts, "c")
    full = dim_names(source.shape)
    padded = ["1"] * (len(counts) - len(full)) + full
    target = [f"({copy} {dim_name})" for copy, dim_name in zip(copies, padded, strict=True)]
    text = pattern([full], [target])
    shapes = ((1, dims(copies)),)
    return loops(text, site, linear=_linear(site), shapes=shapes, work="move", flops=0)


@declare("aten.repeat_interleave.self_int")
def repeat_interleave(site: Site) -> Loops | None:
    """Copies are the inner loop of a dim."""
    (source,) = site.operands
    if not isinstance(literal_dim := _argument(site, 2, "dim"), int):
        return None
    full = dim_names(source.shape)
    target = list(full)
    dim = literal_dim % len(full)
    target[dim] = f"({full[dim]} c!)" if integer(site, 1) > 1 else full[dim]
    return loops(pattern([full], [target]), site, linear=_linear(site), work="move", flops=0)


def _argument(site: Site, position: int, name: str) -> object:
    args = site.op.args
    return args[position] if len(args) > position else site.op.kwargs.get(name)


def _linear(site: Site) -> tuple[tuple[int, ...], ...]:
    return ((0,),) if site.operands[0].differentiable else ()
