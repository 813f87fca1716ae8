"""Parts of tensors and their assembly: a dim is cut into chunks, and the loop inside one is free.

[h (3 n d)] -> 3 x [h (n d)]      the chunk loop is whole, `(n d)` may be split
"""

from __future__ import annotations

from math import gcd

from ..model.loops import Dims, Loops, Site, Work, declare, loops
from .pattern import DimNames, built, dim_names, dims, integer, integers, is_float, literal, pattern

Shapes = tuple[tuple[int, Dims], ...]

# Finer chunks are no structure of the model, and would only clash with other views of the dim.
MAXIMUM_CHUNKS = 32
INNER = "inner"
WITH_SIZES = "split_with_sizes"


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


def _replaced(full: DimNames, dim: int, dim_name: str) -> DimNames:
    return [*full[:dim], dim_name, *full[dim + 1 :]]


class _DimSlice:
    """`slice(x, dim, start, end, step)` with its dim at `position` among the arguments."""

    def __init__(self, site: Site, shape: tuple[int, ...], position: int) -> None:
        self.position, self.shape = position, shape
        self.dim = integer(site, position) % len(shape)
        size, step = shape[self.dim], integer(site, position + 3, 1)
        start, stop = integer(site, position + 1), integer(site, position + 2, size)
        self.start, self.stop = (min(max(x + size * (x < 0), 0), size) for x in (start, stop))
        self.open = stop >= size
        self.count = max((self.stop - self.start + step - 1) // step, 0)
        aligned = step == 1 and start >= 0 and stop >= 0
        self.unit = _unit([size, self.start, self.stop]) if aligned else 1
        full = dim_names(shape)
        self.outer = _replaced(full, self.dim, _chunked(size, self.unit, "chunk"))
        self.inner = _replaced(full, self.dim, _chunked(self.count, self.unit, "part"))

    def declared(
        self, site: Site, inputs: list[DimNames], output: DimNames, work: Work, shapes: Shapes = ()
    ) -> Loops:
        """The literals where the slice begins and ends are multiples of the inner loop."""
        size, unit, position = self.shape[self.dim], self.unit, self.position
        sizes = _sizes(self.shape, self.dim, unit, {"chunk": size, "part": self.count})
        if unit > 1 and self.start:
            shapes += ((position + 1, (("first", INNER),)),)
            sizes["first"] = self.start // unit
        if unit > 1 and not self.open:
            shapes += ((position + 2, (("last", INNER),)),)
            sizes["last"] = self.stop // unit
        linear = _linear(site)
        return built(site, inputs, [output], sizes, linear=linear, shapes=shapes, work=work)


def _sizes(shape: tuple[int, ...], dim: int, unit: int, lengths: dict[str, int]) -> dict[str, int]:
    """Sizes of the words of `shape`, of the chunk loops along `dim`, of the loop inside a chunk."""
    sizes = {f"i{d}": size for d, size in enumerate(shape) if d != dim and size != 1}
    sizes |= {name: size // unit for name, size in lengths.items() if size not in (1, unit)}
    return sizes | ({INNER: unit} if unit > 1 else {})


def _linear(site: Site) -> tuple[tuple[int, ...], ...]:
    return ((*range(len(site.operands)),),) if is_float(site) and site.operands else ()


@declare("aten.slice.Tensor")
def slice_(site: Site) -> Loops:
    dim_slice = _DimSlice(site, site.operands[0].shape, 1)
    return dim_slice.declared(site, [dim_slice.outer], dim_slice.inner, "view")


@declare("aten.slice_backward.default")
def slice_backward(site: Site) -> Loops:
    """gradient, sizes, dim, start, end, step -> zeros with the gradient in its place"""
    dim_slice = _DimSlice(site, integers(site, 1), 2)
    return dim_slice.declared(
        site, [dim_slice.inner], dim_slice.outer, "move", ((1, dims(dim_slice.outer)),)
    )


@declare("aten.slice_scatter.default")
def slice_scatter(site: Site) -> Loops:
    """x, part, dim, start, end, step -> x with the part in its place"""
    dim_slice = _DimSlice(site, site.operands[0].shape, 2)
    return dim_slice.declared(site, [dim_slice.outer, dim_slice.inner], dim_slice.outer, "move")


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


def _selected(shape: tuple[int, ...], dim: int) -> tuple[DimNames, int]:
    dim %= len(shape)
    return dim_names(shape, whole=(dim,)), dim


@declare(
    "aten.split.Tensor",
    "aten.unsafe_split.Tensor",
    "aten.split_with_sizes.default",
    "aten.unsafe_split_with_sizes.default",
    "aten.chunk.default",
)
def split(site: Site) -> Loops:
    shape, target = site.operands[0].shape, site.op.target
    dim = integer(site, 2) % len(shape)
    sizes = _parts(site, shape[dim])
    # chunks of unequal length are counted from the length, which a shard has less of
    unit = _unit([shape[dim], *sizes]) if len(set(sizes)) == 1 or "split" in target else 1
    full = dim_names(shape)
    outer = _replaced(full, dim, _chunked(shape[dim], unit, "chunk"))
    parts = [_chunked(size, unit, f"part{size}") for size in sizes]
    lengths = {"chunk": shape[dim], **{f"part{size}": size for size in sizes}}
    known = _sizes(shape, dim, unit, lengths)
    shapes: Shapes = ()
    if unit > 1 and "split" in target:
        shapes = ((1, dims(parts if WITH_SIZES in target else parts[:1])),)
    outputs = [_replaced(full, dim, part) for part in parts]
    linear = _linear(site)
    return built(site, [outer], outputs, known, linear=linear, shapes=shapes, work="view")


def _parts(site: Site, size: int) -> list[int]:
    """Lengths of the parts along the dim, whether or not anybody uses them."""
    if WITH_SIZES in site.op.target:
        return list(integers(site, 1))
    length = integer(site, 1)
    if site.op.target == "aten.chunk.default":
        length = -(-size // length)
    return [min(length, size - i * length) for i in range(len(site.results))]


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
    full = dim_names(result.shape)
    inputs = [_replaced(full, dim, _chunked(s, unit, f"part{s}")) for s in sizes]
    output = _replaced(full, dim, _chunked(result.shape[dim], unit, "chunk"))
    lengths = {"chunk": result.shape[dim], **{f"part{size}": size for size in sizes}}
    known = _sizes(result.shape, dim, unit, lengths)
    return built(site, inputs, [output], known, linear=_linear(site))


@declare("aten.stack.default")
def stack(site: Site) -> Loops | None:
    (result,) = site.results
    if result is None:
        return None
    full, dim = _selected(result.shape, integer(site, 1))
    inputs = [[*full[:dim], *full[dim + 1 :]]] * len(site.operands)
    return loops(pattern(inputs, [full]), site, linear=_linear(site), work="move", flops=0)


@declare("aten.narrow.default")
def narrow(site: Site) -> Loops:
    shape = site.operands[0].shape
    dim = integer(site, 1) % len(shape)
    full = dim_names(shape, whole=(dim,))
    text = pattern([full], [_replaced(full, dim, "part!")])
    return loops(text, site, linear=_linear(site), work="view", flops=0)


@declare("aten.constant_pad_nd.default", "aten.pad.default")
def pad(site: Site) -> Loops | None:
    """Padded dims are whole."""
    (result,) = site.results
    if result is None:
        return None
    shape, amounts = site.operands[0].shape, integers(site, 1)
    padded = {len(shape) - 1 - i // 2 for i, amount in enumerate(amounts) if amount != 0}
    full = dim_names(shape)
    source = [f"source{d}!" if d in padded and n != "1" else n for d, n in enumerate(full)]
    target = [f"target{d}!" if d in padded else n for d, n in enumerate(full)]
    zero = literal(site, 2, 0) in (0, 0.0) and site.op.target == "aten.constant_pad_nd.default"
    linear = _linear(site) if zero else ()
    return loops(pattern([source], [target]), site, linear=linear, work="move", flops=0)


@declare("aten.flip.default", "aten.roll.default")
def reorder(site: Site) -> Loops | None:
    """Elements change places along whole dims."""
    rank = len(site.operands[0].shape)
    moved = integers(site, 2 if site.op.target == "aten.roll.default" else 1)
    along = {dim % rank for dim in moved} if moved else set(range(rank))
    full = dim_names(site.operands[0].shape, whole=along)
    return loops(pattern([full], [full]), site, linear=_linear(site), work="move", flops=0)


@declare("aten.tril.default", "aten.triu.default")
def triangle(site: Site) -> Loops:
    rank = len(site.operands[0].shape)
    full = dim_names(site.operands[0].shape, whole=(rank - 2, rank - 1))
    return loops(pattern([full], [full]), site, linear=_linear(site), work="move", flops=0)
