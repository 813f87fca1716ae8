"""A mesh: the devices of a plan as a grid with named axes, slowest links first."""

from math import prod

import msgspec


class Axis(msgspec.Struct, frozen=True, array_like=True):
    """One axis of a mesh; rank numbers vary fastest along the last axis."""

    name: str
    size: int


class Mesh(msgspec.Struct, frozen=True):
    axes: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return prod(axis.size for axis in self.axes)

    def index(self, name: str) -> int:
        return next(i for i, axis in enumerate(self.axes) if axis.name == name)

    def coordinate(self, rank: int) -> tuple[int, ...]:
        """Position of a rank along every axis."""
        position = []
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

    def __str__(self) -> str:
        return " × ".join(f"{axis.name} {axis.size}" for axis in self.axes) or "one device"
