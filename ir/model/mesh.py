"""A mesh: the devices of a plan as a grid with named axes, slowest links first.

A mesh may also have axes in time: micro-batches first, chunks of one micro-batch last.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import msgspec

from ..ranges import AxisSize

MICRO = "micro"
CHUNK = "split"
TIME_AXES = {MICRO: "micro-batches", CHUNK: "pieces"}  # nothing is gathered or reduced over them


class Axis(msgspec.Struct, frozen=True, array_like=True):
    """One axis of a mesh; rank numbers vary fastest along the last axis."""

    name: str
    size: AxisSize


class Mesh(msgspec.Struct, frozen=True):
    axes: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return prod(axis.size for axis in self.axes)

    def index(self, name: str) -> int:
        return next(i for i, axis in enumerate(self.axes) if axis.name == name)

    def coordinate(self, rank: int) -> tuple[int, ...]:
        """Position of a rank along every axis."""
        position: list[int] = []
        for axis in reversed(self.axes):
            position.append(rank % axis.size)
            rank //= axis.size
        return tuple(reversed(position))

    def rank(self, coordinate: tuple[int, ...]) -> int:
        rank = 0
        for axis, place in zip(self.axes, coordinate, strict=True):
            rank = rank * axis.size + place
        return rank

    def groups(self, axes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Ranks that differ only along `axes`, one tuple per group, in rank order."""
        members: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.size):
            fixed = tuple(p for i, p in enumerate(self.coordinate(rank)) if i not in axes)
            members.setdefault(fixed, []).append(rank)
        return tuple(tuple(group) for group in members.values())

    def stride(self, axis: int) -> int:
        """Distance in ranks between neighbours along an axis."""
        return prod(a.size for a in self.axes[axis + 1 :])

    def axis_at(self, stride: int) -> int | None:
        """The number of the axis along which ranks `stride` apart are neighbours or further."""
        for number, axis in enumerate(self.axes):
            inner = self.stride(number)
            if axis.size > 1 and inner <= stride < inner * axis.size:
                return number
        return None

    def __str__(self) -> str:
        return " × ".join(f"{axis.name} {axis.size}" for axis in self.axes) or "one device"


def common_mesh(meshes: Sequence[Mesh]) -> Mesh | None:
    """The coarsest mesh whose axes make up those of all meshes; None where there is none.

    An axis is named by the roles it plays, so one mesh alone is its own common mesh.
    """
    if all(mesh == meshes[0] for mesh in meshes):
        return meshes[0]
    marks = {1} | {
        mesh.stride(i) * axis.size for mesh in meshes for i, axis in enumerate(mesh.axes)
    }
    strides = sorted(marks)
    if any(outer % inner for inner, outer in pairwise(strides)):
        return None
    axes: list[Axis] = []
    for inner, outer in reversed(list(pairwise(strides))):
        numbers = [(mesh, mesh.axis_at(inner)) for mesh in meshes]
        roles = dict.fromkeys(mesh.axes[n].name for mesh, n in numbers if n is not None)
        axes.append(Axis(_new("_".join(roles), axes), outer // inner))
    return Mesh(tuple(axes))


def _new(name: str, axes: list[Axis]) -> str:
    names = {axis.name for axis in axes}
    numbered = (f"{name}_{n}" for n in range(2, len(axes) + 3))
    return name if name not in names else next(n for n in numbered if n not in names)
