"""Slices of full tensors and their inverse, without communication.

A sharded dimension has `outer` elements outside the sharded factor and `rest` from it on; shards are
contiguous blocks of `rest`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...ir.model.layout import AxisPlacement, Factors, Layout, shard_position
from ...ir.model.mesh import Mesh


def split(x: Tensor, degree: int, dim: int, outer: int) -> Tensor:
    """`[degree, …]`: the shards of `x` along the factor of `dim` with `outer` elements outside."""
    rest = x.shape[dim] // outer
    assert x.shape[dim] % outer == 0, f"{tuple(x.shape)}: {outer} does not divide dim {dim}"
    assert rest % degree == 0, f"{tuple(x.shape)}: {degree} does not divide {rest} of dim {dim}"
    viewed = x.reshape(*x.shape[:dim], outer, degree, rest // degree, *x.shape[dim + 1 :])
    shards = viewed.movedim(dim + 1, 0)
    shape = list(x.shape)
    shape[dim] //= degree
    return shards.reshape(degree, *shape)


def join(shards: Tensor, dim: int, outer: int) -> Tensor:
    """The full tensor of `[degree, …]` shards: the inverse of `split`."""
    degree, shape = shards.shape[0], list(shards.shape[1:])
    rest = shape[dim] // outer
    viewed = shards.reshape(degree, *shape[:dim], outer, rest, *shape[dim + 1 :])
    shape[dim] *= degree
    return viewed.movedim(0, dim + 1).reshape(shape)


def take_slice(x: Tensor, degree: int, index: int, dim: int, outer: int) -> Tensor:
    """One shard of `split`, contiguous."""
    if degree == 1:
        return x
    return _slice_view(x, degree, index, dim, outer).flatten(dim, dim + 1).contiguous()


def insert_slice(x: Tensor, shard: Tensor, degree: int, index: int, dim: int, outer: int) -> None:
    """Write one shard to its place in `x`."""
    view = _slice_view(x, degree, index, dim, outer)
    view.copy_(shard.unflatten(dim, view.shape[dim : dim + 2]))


def _slice_view(x: Tensor, degree: int, index: int, dim: int, outer: int) -> Tensor:
    """View of one shard, with `dim` in two: the `outer` elements, and the shard's block of the rest."""
    rest = x.shape[dim] // outer
    assert rest % degree == 0, f"{tuple(x.shape)}: {degree} does not divide {rest} of dim {dim}"
    size = rest // degree
    return x.unflatten(dim, (outer, rest)).narrow(dim + 1, index * size, size)


def local_shard(
    x: Tensor, factors: Factors, layout: Layout, mesh: Mesh, coordinate: tuple[int, ...]
) -> Tensor:
    """The shard of a full tensor at a coordinate of the mesh."""
    applied: list[AxisPlacement] = ["R"] * len(layout)
    for axis, state in enumerate(layout):
        if isinstance(state, tuple):
            applied[axis] = state
            dim, outer = shard_position(factors, tuple(applied), mesh, state)
            x = take_slice(x, mesh.axes[axis].size, coordinate[axis], dim, outer)
    return x


def flatten(x: Tensor, length: int) -> Tensor:
    """`x` flattened, with zeros appended up to a length."""
    flat = x.reshape(-1)
    missing = length - flat.numel()
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat
