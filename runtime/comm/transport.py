"""How flat tensors travel: as they are, or compressed as the table says.

zero3   weights gathered for a call │ gradients reduce-scattered after its backward
zero2                               │ gradients reduce-scattered after its backward
zero1                                 gradients reduce-scattered │ optimizer │ weights gathered
dp                                    gradients added up         │ optimizer
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ...ir.compression.program import Algorithm, Subject
from ...ir.compression.registry import PROGRAMS
from ...ir.plan.strategy import ROLES
from ...ir.program import CompressedAxis, Table
from ..compression.activations import Passing, Summing
from ..compression.backends.codec import Codec
from ..compression.backends.native import BuildError, Native, build_once
from ..compression.backends.reference import Reference
from ..compression.buckets import Buckets
from . import buckets
from .process_group import Group
from .program_groups import MeshGroups

Names = Sequence[str]


class Wire(Protocol):
    """Collectives over many flat tensors along one axis; sums take their lists over. By their names
    errors find them again."""

    def all_reduce(self, tensors: list[Tensor], names: Names) -> list[Tensor]: ...
    def reduce_scatter(self, flats: list[Tensor], names: Names) -> list[Tensor]: ...
    def all_gather(self, pieces: Sequence[Tensor], names: Names) -> list[Tensor]: ...


class Plain:
    """As they are."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def all_reduce(self, tensors: list[Tensor], names: Names) -> list[Tensor]:
        return buckets.all_reduce(self.group, tensors)

    def reduce_scatter(self, flats: list[Tensor], names: Names) -> list[Tensor]:
        return buckets.reduce_scatter(self.group, flats)

    def all_gather(self, pieces: Sequence[Tensor], names: Names) -> list[Tensor]:
        return buckets.all_gather(self.group, pieces)


class Wires:
    """Wires by mesh, role and what travels."""

    def __init__(self, table: Table, groups: MeshGroups, folder: Path, native: bool) -> None:
        self.groups = groups
        self.axes = {(axis.mesh, axis.role): axis for axis in table.compression if axis.programs}
        self.codecs: dict[tuple[int, str], Codec] = {
            key: kernels(axis, folder, native) for key, axis in self.axes.items()
        }
        self.made: dict[tuple[int, str], Buckets] = {}
        self.reset()

    def reset(self) -> None:
        """Begin anew: errors are zero, and weights travel whole the next time."""
        for (mesh, role), axis in self.axes.items():
            programs = tuple(PROGRAMS[name] for name in axis.programs)
            levels = self.groups.compressed[mesh, role]
            algorithm = Algorithm(f"{role} of mesh {mesh}", "the plan", programs)
            self.made[mesh, role] = Buckets(algorithm, levels, self.codecs[mesh, role])

    def wire(self, subject: Subject, mesh: int, role: str, group: Group) -> Wire:
        """The wire of gradients or weights along a role; `group` are its ranks."""
        axis = self.axes.get((mesh, role))
        compressed = axis is not None and getattr(axis, subject)
        return self.made[mesh, role] if compressed else Plain(group)

    def rounds_weights(self, mesh: int) -> bool:
        """Whether weights that stay here differ from those that the optimizer steps on."""
        return any(
            axis.weights and axis.mesh == mesh and "parameter" not in ROLES[axis.role].shards
            for axis in self.axes.values()
        )


def kernels(axis: CompressedAxis, folder: Path, native: bool) -> Codec:
    """The compiled kernels of an axis; the reference, which gives the same bits, without a compiler or
    where they are not `native`."""
    if not native:
        return Reference()
    try:
        source = (folder / axis.source).read_text(encoding="utf-8")
        return Native(build_once(source, folder / "kernels" / "build"))
    except BuildError:
        return Reference()


def passing(table: Table, folder: Path, native: bool) -> Passing:
    """How values travel between stages."""
    for axis in table.compression:
        if axis.activations and ROLES[axis.role].stages:
            return Passing(PROGRAMS[axis.activations], kernels(axis, folder, native))
    return Passing()


def summing(
    table: Table, mesh: int, groups: MeshGroups, folder: Path, native: bool
) -> dict[str, Summing]:
    """The axes of a mesh over which activations are summed compressed."""
    return {
        axis.role: Summing(
            PROGRAMS[axis.activations],
            groups.compressed[mesh, axis.role],
            kernels(axis, folder, native),
        )
        for axis in table.compression
        if axis.activations and axis.mesh == mesh and not ROLES[axis.role].stages
    }
