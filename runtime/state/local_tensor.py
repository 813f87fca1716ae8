"""Where this rank's shard of a tensor lies in the whole one, as boxes.

whole tensor      ┌────────┐     a shard along a factor of a dimension is several boxes,
                  │  ██  ██│     a range of a flattened one up to three
                  └────────┘
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

from torch import Tensor

from ...ir.model.layout import AxisPlacement, Factors, Layout, shard_position
from ...ir.model.mesh import Mesh
from .local_parameter import LocalParameter
from .parameters import ParameterStore


class TensorBox(NamedTuple):
    """A box of a whole tensor that begins at `offsets`, and the memory of its values on this rank."""

    offsets: tuple[int, ...]
    values: Tensor


class LocalTensor(NamedTuple):
    """What this rank has, or wants, of a tensor of `shape`."""

    shape: tuple[int, ...]
    chunks: tuple[TensorBox, ...]

    def copied(self) -> LocalTensor:
        """The same values in memory of their own, on the CPU."""
        copies = (TensorBox(c.offsets, c.values.detach().to("cpu", copy=True)) for c in self.chunks)
        return LocalTensor(self.shape, tuple(copies))

    def joined(self, other: LocalTensor) -> LocalTensor:
        """The chunks of both."""
        return LocalTensor(self.shape, (*self.chunks, *other.chunks))


def whole(tensor: Tensor) -> LocalTensor:
    """All of a tensor."""
    shape = tuple(tensor.shape)
    return LocalTensor(shape, (TensorBox((0,) * len(shape), tensor.detach()),))


def shard_of(
    store: ParameterStore, parameter: LocalParameter, flat: Tensor, levels: int
) -> LocalTensor:
    """The part of a parameter, or of a state of its shape, that this rank has in `flat` after the first
    `levels` levels of flat sharding."""
    flat, spec = flat.detach().view(-1), parameter.spec
    if not prod(spec.type.shape):
        return whole(flat[:0].view(spec.type.shape))
    groups = store.flat_groups[spec.mesh]
    place = tuple(
        group.index if degree > 1 else 0
        for group, degree in zip(groups, parameter.sharding.degrees, strict=True)
    )
    assert len(place) == 3
    chunks, position = list[TensorBox](), 0
    mesh = store.table.meshes[spec.mesh]
    slices = slices_of(spec.factors, spec.layout, mesh, mesh.coordinate(store.groups.rank))
    for first, last in parameter.sharding.ranges(place, levels):
        for offsets, sizes in boxes(parameter.shape, first, last):
            count = prod(sizes)
            local = TensorBox(offsets, flat[position : position + count].view(sizes))
            chunks += unsliced(local, slices)
            position += count
    if spec.order:
        chunks = [row for chunk in chunks for row in _in_order(chunk, spec.order)]
    return LocalTensor(tuple(spec.type.shape), tuple(chunks))


def _in_order(chunk: TensorBox, order: Sequence[int]) -> Iterator[TensorBox]:
    """The rows of a chunk where they belong, of a tensor whose places have the indices of `order`."""
    first, *rest = chunk.offsets
    for at in range(chunk.values.shape[0]):
        yield TensorBox((order[first + at], *rest), chunk.values.narrow(0, at, 1))


Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes


def boxes(shape: Sequence[int], first: int, last: int) -> Iterator[Box]:
    """The elements [first, last) of a flattened tensor as boxes of it, in order."""
    if first >= last:
        return
    if len(shape) < 2:
        yield (((first,), (last - first,)) if shape else ((), ()))
        return
    row = prod(shape[1:])
    top, bottom = -(-first // row), last // row
    if top > bottom:  # inside one row
        yield from _in_row(shape, first // row, first, last)
        return
    if first < top * row:
        yield from _in_row(shape, top - 1, first, top * row)
    if top < bottom:
        zeros = (0,) * (len(shape) - 1)
        yield (top, *zeros), (bottom - top, *shape[1:])
    if bottom * row < last:
        yield from _in_row(shape, bottom, bottom * row, last)


def _in_row(shape: Sequence[int], index: int, first: int, last: int) -> Iterator[Box]:
    start = index * prod(shape[1:])
    for offsets, sizes in boxes(shape[1:], first - start, last - start):
        yield (index, *offsets), (1, *sizes)


class Slice(NamedTuple):
    """One sharding of a dimension: blocks of `rest` elements, of which a rank has the part of `size`
    elements with number `part`."""

    dim: int
    rest: int
    size: int
    part: int


def slices_of(
    factors: Factors, layout: Layout, mesh: Mesh, coordinate: tuple[int, ...]
) -> list[Slice]:
    """The shardings of a layout at a coordinate, outermost first: those of
    `comm.slicing.local_shard`."""
    shape = [prod(dim) for dim in factors]
    applied: list[AxisPlacement] = ["R"] * len(layout)
    slices: list[Slice] = []
    for axis, state in enumerate(layout):
        if isinstance(state, tuple):
            applied[axis] = state
            dim, outer = shard_position(factors, tuple(applied), mesh, state)
            degree = mesh.axes[axis].size
            rest = shape[dim] // outer
            slices.append(Slice(dim, rest, rest // degree, coordinate[axis]))
            shape[dim] //= degree
    return slices


def unsliced(chunk: TensorBox, slices: Sequence[Slice]) -> list[TensorBox]:
    """The chunks of the whole tensor that a chunk of a shard is."""
    chunks = [chunk]
    for one in reversed(slices):
        chunks = [part for known in chunks for part in _in_blocks(known, one)]
    return chunks


def _in_blocks(chunk: TensorBox, one: Slice) -> Iterator[TensorBox]:
    """The parts of a chunk that lie in different blocks, at their places before slicing."""
    start = chunk.offsets[one.dim]
    end = start + chunk.values.shape[one.dim]
    at = start
    while at < end:
        block, inside = divmod(at, one.size)
        count = min(end - at, one.size - inside)
        offsets = list(chunk.offsets)
        offsets[one.dim] = block * one.rest + one.part * one.size + inside
        yield TensorBox(tuple(offsets), chunk.values.narrow(one.dim, at - start, count))
        at += count
