"""Transforms of whole dims: Fourier, linear algebra, windows, distances. Other dims are independent."""

from __future__ import annotations

from ..model.loops import LoopKind, Loops, Site, declare, loops
from .pattern import DimNames, dim_names, dims, integer, integers, pattern

# Fourier transforms


@declare("aten._fft_c2c.default", "aten._fft_r2c.default", "aten._fft_c2r.default")
def fourier(site: Site) -> Loops | None:
    """x, dims, … -> spectrum, which a transform from or to real numbers may shorten or lengthen"""
    (result,) = site.results
    if result is None:
        return None
    shape = site.operands[0].shape
    over = {dim % len(shape) for dim in integers(site, 1)}
    full = dim_names(shape, whole=over)
    spectrum = list(full)
    for dim in over:
        if result.shape[dim] != shape[dim]:
            spectrum[dim] = f"o{dim}!" if result.shape[dim] > 1 else "1"
    points = 1
    for dim_name, size in zip(spectrum, result.shape, strict=True):
        points *= size if dim_name.startswith("o") else 1
    text = pattern([full], [spectrum])
    return loops(text, site, linear=((0,),), work="reduce", flops=5 / points)


# target -> operands that the results are linear in, the others fixed
# fmt: off
MATRICES: dict[str, tuple[tuple[int, ...], ...]] = {
    "aten.linalg_cholesky_ex.default": (), "aten.linalg_inv_ex.default": (),
    "aten.linalg_solve_triangular.default": ((1,),), "aten.linalg_lu_factor_ex.default": (),
    "aten.linalg_lu_solve.default": ((2,),), "aten.linalg_qr.default": (),
    "aten._linalg_eigh.default": (), "aten._linalg_svd.default": (), "aten._linalg_det.default": (),
    "aten._linalg_slogdet.default": (), "aten._linalg_solve_ex.default": (),
    "aten.linalg_matrix_exp.default": (), "aten.cholesky_inverse.default": (),
    "aten.cholesky_solve.default": ((0,),), "aten.lu_unpack.default": (),
    "aten.linalg_pinv.default": (),
    "aten.triangular_solve.default": (),
}
# fmt: on


@declare(*MATRICES)
def matrices(site: Site) -> Loops | None:
    """Every matrix of a batch by itself: dims before the last two are independent."""
    shape = site.operands[0].shape
    count = len(shape) - 2
    if any(len(o.shape) < count or o.shape[:count] != shape[:count] for o in site.operands):
        return None
    named: list[DimNames] = []
    for number, type_ in enumerate((*site.operands, *site.results)):
        batch = dim_names(shape[:count])
        inner = () if type_ is None else type_.shape[count:]
        named.append([*batch, *dim_names(inner, f"m{number}d", whole=range(9))])
    inputs, outputs = named[: len(site.operands)], named[len(site.operands) :]
    linear = MATRICES[site.op.target]
    return loops(pattern(inputs, outputs), site, linear=linear, work="reduce", flops=1)


# windows


def _windows(shape: tuple[int, ...], dim: int) -> tuple[DimNames, DimNames]:
    """Dims of x, and of its windows along `dim`, with the places in a window last."""
    full = dim_names(shape, whole=(dim,))
    return full, [*full[:dim], "window!", *full[dim + 1 :], "place!"]


@declare("aten.unfold.default")
def unfold(site: Site) -> Loops | None:
    """x, dim, length, step -> windows along a dim"""
    shape = site.operands[0].shape
    if not shape:
        return None
    full, made = _windows(shape, integer(site, 1) % len(shape))
    return loops(pattern([full], [made]), site, linear=((0,),), work="move", flops=0)


@declare("aten.unfold_backward.default")
def unfold_backward(site: Site) -> Loops | None:
    """gradient of windows, shape of x, dim, length, step -> of x"""
    (result,) = site.results
    if result is None or not result.shape:
        return None
    full, made = _windows(result.shape, integer(site, 2) % len(result.shape))
    shapes = ((1, dims(full)),)
    return loops(pattern([made], [full]), site, linear=((0,),), shapes=shapes, work="move", flops=0)


# distances between all rows of two tensors


@declare("aten._cdist_forward.default", "aten._euclidean_dist.default")
def distances(site: Site) -> Loops | None:
    """[… p m], [… r m] -> [… p r]"""
    batch, same = _batch_of_rows(site, 0)
    if not same:
        return None
    text = pattern([[*batch, "p", "m!"], [*batch, "r", "m!"]], [[*batch, "p", "r"]])
    return loops(text, site, work="reduce", flops=3)


@declare("aten._cdist_backward.default")
def distances_backward(site: Site) -> Loops | None:
    """gradient, first rows, second rows, …, distances -> of the first rows"""
    batch, same = _batch_of_rows(site, 1)
    if not same:
        return None
    rows = [[*batch, "p", "m!"], [*batch, "r", "m!"]]
    pairs = [*batch, "p", "r"]
    text = pattern([pairs, *rows, pairs], [rows[0]])
    return loops(text, site, linear=((0,),), work="reduce", flops=4)


def _batch_of_rows(site: Site, first: int) -> tuple[DimNames, bool]:
    """The dims before the rows, and whether both tensors have the same ones."""
    one, other = site.operands[first].shape[:-2], site.operands[first + 1].shape[:-2]
    return dim_names(one), one == other


@declare("aten.affine_grid_generator.default")
def affine_grid(site: Site) -> Loops | None:
    """maps [n d d+1], size -> the places that every map sends a grid to"""
    (result,) = site.results
    if result is None:
        return None
    rank = len(result.shape)
    places = dim_names(result.shape[1 : rank - 1], "o", whole=range(9))
    text = pattern([["b", "d!", "e!"]], [["b", *places, "d!"]])
    size = integers(site, 1)
    sizes = {"channels": size[1]}
    shapes = ((1, dims(["b", "channels", *places])),)
    kinds: dict[str, LoopKind] = {"channels": "whole"}
    return loops(
        text, site, kinds=kinds, sizes=sizes, linear=((0,),), shapes=shapes, work="move", flops=1
    )
