"""Parts of tensors and their assembly: a dim is cut into chunks, and the loop inside one is free.

    [h (3 n d)] -> 3 x [h (n d)]      the chunk loop is whole, `(n d)` may be split
"""

from __future__ import annotations

from math import gcd

from ..op import Dims, Loops, Site, declare, loops
from .pattern import (
    Words,
    dims,
    integer,
    integers,
    is_float,
    literal,
    pattern,
    with_sizes,
    words,
)

Shapes = tuple[tuple[int, Dims], ...]

# Finer chunks are no structure of the model, and would only clash with other views of the dim.
MAXIMUM_CHUNKS = 32
INNER = "inner"


def _unit(sizes: list[int]) -> int:
    """Length of the equal chunks that all boundaries fall on; 1 when there are too many."""
    unit = gcd(*sizes)
    return unit if unit and max(sizes) // unit <= MAXIMUM_CHUNKS else 1


def _chunked(size: int, unit: int, name: str) -> str:
    """A dim of `size` as chunks of `unit`."""
    if size == 1:
        return "1"
    if unit == 1:
        return f"{name}!"
    return INNER if size == unit else f"({name}! {INNER})"


def _replaced(full: Words, dim: int, word: str) -> Words:
    return [*full[:dim], word, *full[dim + 1 :]]


class _Slice:
    """`slice(x, dim, start, end, step)` with its first argument after the tensors at `position`."""

    def __init__(self, site: Site, shape: tuple[int, ...], position: int) -> None:
        self.dim = integer(site, position) % len(shape)
        size, step = shape[self.dim], integer(site, position + 3, 1)
        start, stop = integer(site, position + 1), integer(site, position + 2, size)
        self.start, self.stop = (min(max(x + size * (x < 0), 0), size) for x in (start, stop))
        self.negative = start < 0 or stop < 0
        self.full = step == 1 and self.start == 0 and self.stop == size
        aligned = step == 1 and not self.negative
        self.unit = _unit([size, self.start, self.stop]) if aligned else 1
        self.position, self.to_end = position, stop >= size
        whole = words(shape)
        size_out = max((self.stop - self.start + step - 1) // step, 0)
        self.outer = _replaced(whole, self.dim, _chunked(size, self.unit, "chunk"))
        self.inner = _replaced(whole, self.dim, _chunked(size_out, self.unit, "part"))
        if self.full:
            self.outer = self.inner = whole

    def shapes(self) -> Shapes:
        """Where the cut begins and ends, in chunks."""
        if self.full or self.unit == 1:
            return ()
        found: Shapes = ()
        if self.start:
            found += ((self.position + 1, (("first", INNER),)),)
        if not self.to_end:
            found += ((self.position + 2, (("last", INNER),)),)
        return found

    def sized(self, declared: Loops) -> Loops:
        if self.full or self.unit == 1:
            return declared
        sizes = {"first": self.start // self.unit, "last": self.stop // self.unit}
        used = {name for _, literal_dims in self.shapes() for dim in literal_dims for name in dim}
        return with_sizes(declared, {n: s for n, s in sizes.items() if n in used})


def _linear(site: Site) -> tuple[tuple[int, ...], ...]:
    return ((*range(len(site.operands)),),) if is_float(site) and site.operands else ()


@declare("aten.slice.Tensor")
def slice_(site: Site) -> Loops:
    cut = _Slice(site, site.operands[0].shape, 1)
    text = pattern([cut.outer], [cut.inner])
    made = loops(text, site, linear=_linear(site), shapes=cut.shapes(), work="view", flops=0)
    return cut.sized(made)


@declare("aten.narrow.default")
def narrow(site: Site) -> Loops:
    shape = site.operands[0].shape
    dim = integer(site, 1) % len(shape)
    return _whole_along(site, dim, integer(site, 3), "view")


@declare("aten.slice_backward.default")
def slice_backward(site: Site) -> Loops:
    """gradient, sizes, dim, start, end, step -> zeros with the gradient in its place"""
    cut = _Slice(site, integers(site, 1), 2)
    shapes = ((1, dims(cut.outer)), *cut.shapes())
    text = pattern([cut.inner], [cut.outer])
    return cut.sized(loops(text, site, linear=_linear(site), shapes=shapes, work="move", flops=0))


@declare("aten.slice_scatter.default")
def slice_scatter(site: Site) -> Loops:
    """x, part, dim, start, end, step -> x with the part in its place"""
    cut = _Slice(site, site.operands[0].shape, 2)
    text = pattern([cut.outer, cut.inner], [cut.outer])
    made = loops(text, site, linear=_linear(site), shapes=cut.shapes(), work="move", flops=0)
    return cut.sized(made)


@declare("aten.select.int")
def select(site: Site) -> Loops:
    full, dim = _selected(site.operands[0].shape, integer(site, 1))
    text = pattern([full], [[*full[:dim], *full[dim + 1 :]]])
    return loops(text, site, linear=_linear(site), work="view", flops=0)


@declare("aten.select_backward.default")
def select_backward(site: Site) -> Loops:
    """gradient, sizes, dim, index -> zeros with the gradient in its place"""
    full, dim = _selected(integers(site, 1), integer(site, 2))
    text = pattern([[*full[:dim], *full[dim + 1 :]]], [full])
    shapes = ((1, dims(full)),)
    return loops(text, site, linear=_linear(site), shapes=shapes, work="move", flops=0)


@declare("aten.select_scatter.default")
def select_scatter(site: Site) -> Loops:
    """x, part, dim, index -> x with the part in its place"""
    full, dim = _selected(site.operands[0].shape, integer(site, 2))
    text = pattern([full, [*full[:dim], *full[dim + 1 :]]], [full])
    return loops(text, site, linear=_linear(site), work="move", flops=0)


def _selected(shape: tuple[int, ...], dim: int) -> tuple[Words, int]:
    dim %= len(shape)
    return words(shape, whole=(dim,)), dim


@declare("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default")
def split(site: Site) -> Loops | None:
    shape = site.operands[0].shape
    dim = integer(site, 2) % len(shape)
    sizes = [None if r is None else r.shape[dim] for r in site.results]
    if site.op.target == "aten.split_with_sizes.default":
        sizes = list(integers(site, 1))
    elif site.op.target == "aten.split.Tensor":
        size = integer(site, 1)
        sizes = [min(size, shape[dim] - i * size) for i in range(len(site.results))]
    elif shape[dim] % len(sizes) == 0:
        sizes = [shape[dim] // len(sizes)] * len(sizes)
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    unit = _unit([shape[dim], *known])
    if site.op.target == "aten.chunk.default" and len(set(known)) > 1:
        unit = 1
    return _split(site, dim, known, unit)


def _split(site: Site, dim: int, sizes: list[int], unit: int) -> Loops:
    shape = site.operands[0].shape
    full = words(shape)
    outer = _replaced(full, dim, _chunked(shape[dim], unit, "chunk"))
    made = [_chunked(size, unit, f"part{size}") for size in sizes]
    outputs = [_replaced(full, dim, word) for word in made]
    named = dict(zip((f"part{s}" for s in sizes), (s // unit for s in sizes), strict=True))
    shapes: Shapes = ()
    if site.op.target == "aten.split_with_sizes.default":
        shapes = ((1, dims(made)),)
    elif site.op.target == "aten.split.Tensor":
        shapes = ((1, dims(made[:1])),)
    text = pattern([outer], outputs)
    return _complete(site, text, shapes if unit > 1 else (), named)


def _complete(site: Site, text: str, shapes: Shapes, sizes: dict[str, int]) -> Loops:
    """Parts that nobody uses have no type to take their size from."""
    unused = [i for i, result in enumerate(site.results) if result is None]
    made = loops(text, site, linear=_linear(site), shapes=shapes, work="view", flops=0)
    if not unused:
        return made
    known = {loop.name for loop in made.loops}
    named = {n for tensor in made.outputs for dim in tensor for n in dim}
    return with_sizes(made, {n: s for n, s in sizes.items() if n in named - known})


@declare("aten.unbind.int")
def unbind(site: Site) -> Loops:
    full, dim = _selected(site.operands[0].shape, integer(site, 1))
    part = [*full[:dim], *full[dim + 1 :]]
    text = pattern([full], [part] * len(site.results))
    return loops(text, site, linear=_linear(site), work="view", flops=0)


@declare("aten.cat.default", "aten.concat.default")
def cat(site: Site) -> Loops | None:
    (result,) = site.results
    if result is None or any(len(o.shape) != len(result.shape) for o in site.operands):
        return None
    dim = integer(site, 1) % len(result.shape)
    sizes = [operand.shape[dim] for operand in site.operands]
    unit = _unit([result.shape[dim], *sizes])
    full = words(result.shape)
    inputs = [_replaced(full, dim, _chunked(s, unit, f"part{s}")) for s in sizes]
    made = _replaced(full, dim, _chunked(result.shape[dim], unit, "chunk"))
    return loops(pattern(inputs, [made]), site, linear=_linear(site), work="move", flops=0)


@declare("aten.stack.default")
def stack(site: Site) -> Loops | None:
    (result,) = site.results
    if result is None:
        return None
    full, dim = _selected(result.shape, integer(site, 1))
    inputs = [[*full[:dim], *full[dim + 1 :]]] * len(site.operands)
    return loops(pattern(inputs, [full]), site, linear=_linear(site), work="move", flops=0)


def _whole_along(site: Site, dim: int, size: int, work: str) -> Loops:
    full = words(site.operands[0].shape, whole=(dim,))
    made = _replaced(full, dim, "1" if size == 1 else "part!")
    text = pattern([full], [made])
    return loops(text, site, linear=_linear(site), work="view", flops=0)


@declare("aten.constant_pad_nd.default", "aten.pad.default")
def pad(site: Site) -> Loops | None:
    """Padded dims are whole."""
    (result,) = site.results
    if result is None:
        return None
    shape, amounts = site.operands[0].shape, integers(site, 1)
    padded = {
        len(shape) - 1 - i // 2 for i, amount in enumerate(amounts) if amount != 0
    }
    full = words(shape)
    given = [f"given{d}!" if d in padded and word != "1" else word for d, word in enumerate(full)]
    made = [f"made{d}!" if d in padded else word for d, word in enumerate(full)]
    zero = literal(site, 2, 0) in (0, 0.0) and site.op.target == "aten.constant_pad_nd.default"
    linear = _linear(site) if zero else ()
    return loops(pattern([given], [made]), site, linear=linear, work="move", flops=0)


@declare("aten.flip.default", "aten.roll.default")
def reorder(site: Site) -> Loops | None:
    """Elements change places along whole dims."""
    rank = len(site.operands[0].shape)
    moved = integers(site, 2 if site.op.target == "aten.roll.default" else 1)
    along = {dim % rank for dim in moved} if moved else set(range(rank))
    full = words(site.operands[0].shape, whole=along)
    return loops(pattern([full], [full]), site, linear=_linear(site), work="move", flops=0)


@declare("aten.tril.default", "aten.triu.default")
def triangle(site: Site) -> Loops:
    rank = len(site.operands[0].shape)
    full = words(site.operands[0].shape, whole=(rank - 2, rank - 1))
    return loops(pattern([full], [full]), site, linear=_linear(site), work="move", flops=0)
