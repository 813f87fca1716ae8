"""Cutting whole tensors into a rank's pieces and putting pieces together: no communication.

A dimension that is cut has `outer` elements outside the cut factor and `rest` from it on; pieces
are contiguous blocks of `rest`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...ir.layout import Factors, Layout, State, along
from ...ir.mesh import Mesh


def split(x: Tensor, ways: int, dim: int, outer: int) -> Tensor:
    """`[ways, …]`: the pieces of `x` along the factor of `dim` with `outer` elements outside."""
    rest = x.shape[dim] // outer
    assert x.shape[dim] % outer == 0, f"{tuple(x.shape)}: {outer} does not divide dim {dim}"
    assert rest % ways == 0, f"{tuple(x.shape)}: {ways} does not divide {rest} of dim {dim}"
    viewed = x.reshape(*x.shape[:dim], outer, ways, rest // ways, *x.shape[dim + 1 :])
    pieces = viewed.movedim(dim + 1, 0)
    shape = list(x.shape)
    shape[dim] //= ways
    return pieces.reshape(ways, *shape)


def join(pieces: Tensor, dim: int, outer: int) -> Tensor:
    """The inverse of `split`."""
    ways, shape = pieces.shape[0], list(pieces.shape[1:])
    rest = shape[dim] // outer
    viewed = pieces.reshape(ways, *shape[:dim], outer, rest, *shape[dim + 1 :])
    shape[dim] *= ways
    return viewed.movedim(0, dim + 1).reshape(shape)


def block(x: Tensor, ways: int, index: int, dim: int, outer: int) -> Tensor:
    """One piece of `split`, contiguous."""
    if ways == 1:
        return x
    return _place(x, ways, index, dim, outer).flatten(dim, dim + 1).contiguous()


def put(x: Tensor, part: Tensor, ways: int, index: int, dim: int, outer: int) -> None:
    """Write one piece into its place in `x`."""
    place = _place(x, ways, index, dim, outer)
    place.copy_(part.unflatten(dim, place.shape[dim : dim + 2]))


def _place(x: Tensor, ways: int, index: int, dim: int, outer: int) -> Tensor:
    """A view of one piece, `dim` in two: what lies outside the cut, and the piece's part of the rest."""
    rest = x.shape[dim] // outer
    assert rest % ways == 0, f"{tuple(x.shape)}: {ways} does not divide {rest} of dim {dim}"
    size = rest // ways
    return x.unflatten(dim, (outer, rest)).narrow(dim + 1, index * size, size)


def piece(
    x: Tensor, factors: Factors, layout: Layout, mesh: Mesh, coordinate: tuple[int, ...]
) -> Tensor:
    """The piece of a whole tensor that lies at a place of the mesh."""
    made: list[State] = ["R"] * len(layout)
    for axis, state in enumerate(layout):
        if isinstance(state, tuple):
            made[axis] = state
            dim, outer = along(factors, tuple(made), mesh, state)
            x = block(x, mesh.axes[axis].size, coordinate[axis], dim, outer)
    return x


def flatten(x: Tensor, length: int) -> Tensor:
    """`x` as one dimension, zeros appended up to a length."""
    flat = x.reshape(-1)
    missing = length - flat.numel()
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat
