"""Look-ups and scatters: what is indexed is whole, the indices and the rest are independent."""

from __future__ import annotations

from ..model.loops import LoopKind, Loops, Site, Work, declare, loops
from ..model.model import Ref
from .pattern import DimNames, aligned, dim_names, integer, literal, pattern

MOVE: Work = "move"


def _shared(shape: tuple[int, ...], index: tuple[int, ...], dim: int) -> tuple[DimNames, DimNames]:
    """Dim names of a tensor and of indices into it along `dim`; other dims of unequal size are whole."""
    full, places = dim_names(shape, whole=(dim,)), dim_names(index, "n")
    for d, (size, other) in enumerate(zip(shape, index, strict=True)):
        if d == dim:
            continue
        if size == other:
            places[d] = full[d]
        else:
            full[d], places[d] = (f"i{d}!" if size > 1 else "1"), (f"n{d}!" if other > 1 else "1")
    return full, places


@declare("aten.gather.default")
def gather(site: Site) -> Loops | None:
    """x, dim, indices -> elements"""
    shape, index = site.operands[0].shape, site.operands[1].shape
    if not shape or not index:
        return None
    full, places = _shared(shape, index, integer(site, 1) % len(shape))
    linear = ((0,),) if site.operands[0].differentiable else ()
    return loops(pattern([full, places], [places]), site, linear=linear, work=MOVE, flops=0)


@declare(
    "aten.scatter.src", "aten.scatter.value", "aten.scatter_add.default", "aten.scatter_reduce.two"
)
def scatter(site: Site) -> Loops | None:
    """x, dim, indices, source -> x with elements written or added"""
    shape, index = site.operands[0].shape, site.operands[1].shape
    source = site.operands[2:]
    if not shape or any(s.shape != index for s in source):
        return None
    dim = integer(site, 1) % len(shape)
    full, places = _shared(shape, index, dim)
    text = pattern([full, places, *[places] * len(source)], [full])
    adds = site.op.target == "aten.scatter_add.default" and site.operands[0].differentiable
    linear = ((0, 2),) if adds else ()
    kinds: dict[str, LoopKind] = {} if adds else {f"n{dim}": "whole"}
    return loops(text, site, kinds=kinds, linear=linear, added_to=(0,) * adds, work=MOVE, flops=0)


def _slices(site: Site, loop: str) -> tuple[list[str], str, list[str]] | None:
    """Dims of a tensor indexed along one dim, of the indices, and of the slices they name."""
    shape = site.operands[0].shape
    if not shape or not site.operands[1].shape:
        return None
    dim = integer(site, 1) % len(shape)
    full = dim_names(shape, whole=(dim,))
    (count,) = site.operands[1].shape
    places = "1" if count == 1 else loop
    return full, places, [*full[:dim], places, *full[dim + 1 :]]


@declare("aten.index_select.default")
def index_select(site: Site) -> Loops | None:
    slices = _slices(site, "n")
    if slices is None:
        return None
    full, places, result = slices
    linear = ((0,),) if site.operands[0].differentiable else ()
    return loops(pattern([full, [places]], [result]), site, linear=linear, work=MOVE, flops=0)


@declare("aten.index_add.default")
def index_add(site: Site) -> Loops | None:
    """x, dim, indices, source -> x with slices added"""
    adds = site.operands[0].differentiable
    slices = _slices(site, "n" if adds else "n!")
    if slices is None:
        return None
    full, places, source = slices
    text = pattern([full, [places], source], [full])
    linear = ((0, 2),) if adds else ()
    return loops(text, site, linear=linear, added_to=(0,) * adds, work=MOVE, flops=0)


class _Indexed:
    """`x[indices]`: dims of x, of every index tensor, and of the elements found."""

    def __init__(self, site: Site, free: bool) -> None:
        arguments = literal(site, 1)
        assert isinstance(arguments, tuple)
        used = [d for d, index in enumerate(arguments) if isinstance(index, Ref)]
        count = len(used)
        indices = [operand.shape for operand in site.operands[1 : 1 + count]]
        self.masks = any(o.dtype in ("bool", "uint8") for o in site.operands[1 : 1 + count])
        shape = site.operands[0].shape
        self.full = dim_names(shape, whole=used)
        rank = max((len(index) for index in indices), default=0)
        padded = [(1,) * (rank - len(index)) + index for index in indices]
        joint = tuple(max(sizes) for sizes in zip(*padded, strict=True))
        whole = () if free else range(rank)
        places = dim_names(joint, "n", whole=whole)
        self.indices = [aligned(index, places) for index in indices]
        rest = [dim_name for d, dim_name in enumerate(self.full) if d not in used]
        together = bool(used) and used == list(range(used[0], used[0] + count))
        at = used[0] if together else 0
        self.result = [*rest[:at], *places, *rest[at:]]


@declare("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(site: Site) -> Loops | None:
    """x, indices -> elements; a mask as index gives a size that only the data knows"""
    named = _Indexed(site, free=True)
    if named.masks:
        return None
    linear = ((0,),) if site.operands[0].differentiable else ()
    text = pattern([named.full, *named.indices], [named.result])
    return loops(text, site, linear=linear, work=MOVE, flops=0)


@declare("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(site: Site) -> Loops | None:
    """x, indices, values, accumulate -> x with elements written or added"""
    adds = literal(site, 3) is True and site.operands[0].differentiable
    named = _Indexed(site, free=adds)
    values = site.operands[-1].shape
    if named.masks or len(values) > len(named.result):
        return None
    source = aligned(values, named.result)
    last = len(site.operands) - 1
    text = pattern([named.full, *named.indices, source], [named.full])
    linear = ((0, last),) if adds else ()
    return loops(text, site, linear=linear, added_to=(0,) * adds, work=MOVE, flops=0)


@declare("aten.bucketize.Tensor", "aten.searchsorted.Tensor")
def bucketize(site: Site) -> Loops | None:
    """values and one sorted row of boundaries, or one of every row -> bucket of every value"""
    first = site.op.target == "aten.bucketize.Tensor"
    values, boundaries = (0, 1) if first else (1, 0)
    if len(site.operands) != 2:
        return None
    full = dim_names(site.operands[values].shape)
    rows = full[:-1] if len(site.operands[boundaries].shape) > 1 else []
    inputs = [full, ["v!"]] if first else [[*rows, "v!"], full]
    return loops(pattern(inputs, [full]), site, work="pointwise", flops=1)
