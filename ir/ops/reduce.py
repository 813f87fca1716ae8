"""Reductions and scans: sums may be split, everything else is whole along its dims."""

from __future__ import annotations

from ..model.loops import LoopKind, Loops, Site, declare, loops
from .pattern import DimNames, dim_names, integer, integers, is_float, literal, pattern


def _reduced(site: Site, position: int) -> tuple[int, ...]:
    """The dims reduced over: none given means all."""
    rank = len(site.operands[0].shape)
    given = integers(site, position)
    return tuple(dim % rank for dim in given) if given and rank else tuple(range(rank))


def _reduce(
    site: Site, over: tuple[int, ...], keep: bool, kind: LoopKind, linear: bool
) -> Loops | None:
    shape = site.operands[0].shape
    full = dim_names(shape)
    out: DimNames = [
        "1" if dim in over else dim_name
        for dim, dim_name in enumerate(full)
        if keep or dim not in over
    ]
    kinds: dict[str, LoopKind] = {f"i{dim}": kind for dim in over if shape[dim] != 1}
    groups = ((0,),) if linear and is_float(site) else ()
    text = pattern([full], [out] * len(site.results))
    return loops(text, site, kinds=kinds, linear=groups, work="reduce", flops=1)


@declare("aten.sum.dim_IntList", "aten.sum.default", "aten.mean.dim", "aten.mean.default")
def total(site: Site) -> Loops | None:
    everything = site.op.target.endswith(".default")
    over = _reduced(site, 99 if everything else 1)
    kind: LoopKind = "split" if ".sum." in site.op.target else "mean"
    keep = not everything and literal(site, 2) is True
    return _reduce(site, over, keep, kind, linear=True)


@declare("aten.sum_to_size.default")
def sum_to_size(site: Site) -> Loops | None:
    """Sums over the dims that the given size broadcasts along."""
    (result,) = site.results
    if result is None:
        return None
    full = dim_names(site.operands[0].shape)
    tail = full[len(full) - len(result.shape) :]
    out = [
        "1" if size == 1 else dim_name for size, dim_name in zip(result.shape, tail, strict=True)
    ]
    named = tuple(() if dim_name == "1" else (dim_name,) for dim_name in out)
    groups = ((0,),) if is_float(site) else ()
    text = pattern([full], [out])
    return loops(text, site, linear=groups, shapes=((1, named),), work="reduce", flops=1)


# target -> positions of the dims and of keepdim among the arguments
WHOLE: dict[str, tuple[int, int]] = {
    "aten.amax.default": (1, 2),
    "aten.amin.default": (1, 2),
    "aten.max.dim": (1, 2),
    "aten.min.dim": (1, 2),
    "aten.max.default": (99, 99),
    "aten.min.default": (99, 99),
    "aten.argmax.default": (1, 2),
    "aten.argmin.default": (1, 2),
    "aten.any.dim": (1, 2),
    "aten.any.dims": (1, 2),
    "aten.any.default": (99, 99),
    "aten.all.dim": (1, 2),
    "aten.all.dims": (1, 2),
    "aten.all.default": (99, 99),
    "aten.prod.dim_int": (1, 2),
    "aten.prod.default": (99, 99),
    "aten.logsumexp.default": (1, 2),
    "aten.var.correction": (1, 99),
    "aten.std.correction": (1, 99),
    "aten.var_mean.correction": (1, 99),
    "aten.linalg_vector_norm.default": (2, 3),
    "aten.norm.ScalarOpt_dim": (2, 3),
    "aten.norm.Scalar": (99, 99),
    "aten.median.dim": (1, 2),
    "aten.median.default": (99, 99),
    "aten.nanmedian.dim": (1, 2),
}


@declare(*WHOLE)
def whole(site: Site) -> Loops | None:
    """The result is no sum of what the shards would give."""
    position, keep = WHOLE[site.op.target]
    remaining = literal(site, keep) is True or site.op.kwargs.get("keepdim") is True
    return _reduce(site, _reduced(site, position), remaining, "whole", linear=False)


# target -> position of the dim; every result has the shape of the operand
SCANS: dict[str, int] = {
    "aten.cumsum.default": 1,
    "aten.cumprod.default": 1,
    "aten.logcumsumexp.default": 1,
    "aten.cummax.default": 1,
    "aten.cummin.default": 1,
    "aten.sort.default": 1,
    "aten.sort.stable": 99,
    "aten.argsort.default": 1,
    "aten.argsort.stable": 99,
}


@declare(*SCANS)
def scan(site: Site) -> Loops:
    shape = site.operands[0].shape
    dim = site.op.kwargs.get("dim", integer(site, SCANS[site.op.target], -1))
    assert isinstance(dim, int)
    full = dim_names(shape, whole=(dim % max(len(shape), 1),))
    linear = site.op.target == "aten.cumsum.default" and is_float(site)
    text = pattern([full], [full] * len(site.results))
    return loops(text, site, linear=((0,),) if linear else (), work="reduce", flops=1)


@declare("aten.topk.default", "aten.kthvalue.default")
def topk(site: Site) -> Loops:
    """The best k along a dim; `kthvalue` removes the dim unless told to keep it."""
    shape = site.operands[0].shape
    dim = integer(site, 2, -1) % max(len(shape), 1)
    full = dim_names(shape, whole=(dim,))
    made = [*full[:dim], "best!", *full[dim + 1 :]]
    if site.op.target == "aten.kthvalue.default":
        made[dim : dim + 1] = ["1"] if literal(site, 3) is True else []
    return loops(pattern([full], [made, made]), site, work="reduce", flops=1)


@declare("aten.histc.default", "aten.bincount.default")
def histogram(site: Site) -> Loops | None:
    """Bins depend on every element."""
    full = dim_names(site.operands[0].shape, whole=range(9))
    weights = [full] * (len(site.operands) - 1)
    return loops(pattern([full, *weights], [["bins!"]]), site, work="reduce", flops=1)
