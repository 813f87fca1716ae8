"""Transports of flat gradients and weights: plain, or compressed as the table says.

zero3   weights gathered for a call │ gradients reduce-scattered after its backward
zero2                               │ gradients reduce-scattered after its backward
zero1                                 gradients reduce-scattered │ optimizer │ weights gathered
dp                                    gradients added up         │ optimizer
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...ir.compression.program import CompressionAlgorithm, Payload
from ...ir.compression.registry import COMPRESSED_OPTIMIZERS, PROGRAMS, ROW_PROGRAMS
from ...ir.plan.program import CompressedAxis, ProgramTable
from ...ir.plan.strategy import ROLES
from ..comm.buckets import PlainTransport, Transport
from ..comm.mesh_collectives import AllReduce, Comm
from ..comm.process_group import Group
from ..comm.program_groups import MeshGroups
from .activations import CompressedAllReduce, StageTransferCodec
from .backends.codec import Codec
from .backends.native import BuildError, NativeCodec, build_once
from .backends.reference import ReferenceCodec
from .backends.triton import triton_codec
from .buckets import CompressedBuckets
from .centroids import RowCentroids


class Transports:
    """Transports by mesh, role and payload (gradients or weights)."""

    def __init__(
        self, table: ProgramTable, groups: MeshGroups, folder: Path, device: torch.device
    ) -> None:
        self.groups = groups
        axes = {(axis.mesh, axis.role): axis for axis in table.compression if axis.has_kernels}
        self.axes = {key: axis for key, axis in axes.items() if axis.programs}
        self.codecs: dict[tuple[int, str], Codec] = {
            key: load_codec(axis, folder, device) for key, axis in axes.items()
        }
        self.buckets: dict[tuple[int, str], CompressedBuckets] = {}
        self.reset()

    def reset(self) -> None:
        """Reset all states: errors are zero, and weights are next gathered uncompressed."""
        for (mesh, role), axis in self.axes.items():
            programs = tuple(PROGRAMS[name] for name in axis.programs)
            hierarchy = self.groups.hierarchies[mesh, role]
            algorithm = CompressionAlgorithm(f"{role} of mesh {mesh}", "the plan", programs)
            self.buckets[mesh, role] = CompressedBuckets(
                algorithm, hierarchy, self.codecs[mesh, role]
            )

    def transport(self, payload: Payload, mesh: int, role: str, group: Group) -> Transport:
        """The transport of gradients or weights along a role; `group` are its ranks."""
        axis = self.axes.get((mesh, role))
        compressed = axis is not None and getattr(axis, payload)
        return self.buckets[mesh, role] if compressed else PlainTransport(group)

    def backends(self) -> list[str]:
        """What kernels of compressed messages are written in, on this rank."""
        return sorted({codec.name for codec in self.codecs.values()})

    def compresses_weights(self, mesh: int) -> bool:
        """Whether the weights that ranks see are compressed, apart from the optimizer's exact ones."""
        return any(
            axis.weights and axis.mesh == mesh and "parameter" not in ROLES[axis.role].shards
            for axis in self.axes.values()
        )


def native_codec(axis: CompressedAxis, folder: Path) -> Codec:
    """The C++ kernels of an axis; where they cannot be built, the reference codec, which is slower and
    gives the same bits, with a warning."""
    try:
        source = (folder / axis.source).read_text(encoding="utf-8")
        return NativeCodec(build_once(source, folder / "kernels" / "build"))
    except BuildError as error:
        warnings.warn(f"compressed messages are encoded by torch, slowly: {error}", stacklevel=2)
        return ReferenceCodec()


BACKENDS: Mapping[str, Callable[[CompressedAxis, Path], Codec]] = {  # all other devices: Triton
    "cpu": native_codec,
    "meta": lambda axis, folder: ReferenceCodec(),  # nothing is computed
}


def load_codec(axis: CompressedAxis, folder: Path, device: torch.device) -> Codec:
    """The kernels of an axis for a device. Raises UsageError where Triton is missing."""
    if device.type in BACKENDS:
        return BACKENDS[device.type](axis, folder)
    return triton_codec(folder / axis.triton_source)


def stage_transfer_codec(
    table: ProgramTable, folder: Path, device: torch.device
) -> StageTransferCodec:
    """The codec of activations and gradients sent between stages."""
    for axis in table.compression:
        if axis.activations and ROLES[axis.role].stages:
            return StageTransferCodec(PROGRAMS[axis.activations], load_codec(axis, folder, device))
    return StageTransferCodec()


class LikeThisRank(NamedTuple):
    """A sum over ranks that do not wait for each other: each takes the others to be like itself."""

    ranks: int

    def all_reduce(self, x: Tensor) -> Tensor:
        return x * self.ranks


def other_all_reduces(
    table: ProgramTable, mesh: int, groups: MeshGroups, folder: Path, device: torch.device
) -> Mapping[str, AllReduce]:
    """All-reduces inside functions that are compressed, or of one rank alone, by axis of a mesh."""
    local = {
        axis.role: LikeThisRank(groups.hierarchies[axis.mesh, axis.role].all.size)
        for axis in table.compression
        if axis.optimizer and COMPRESSED_OPTIMIZERS[axis.optimizer].meets_some
    }
    return local | {
        axis.role: CompressedAllReduce(
            PROGRAMS[axis.activations],
            groups.hierarchies[mesh, axis.role],
            load_codec(axis, folder, device),
        )
        for axis in table.compression
        if axis.activations and axis.mesh == mesh and not ROLES[axis.role].stages
    }


def mesh_comms(
    table: ProgramTable, groups: MeshGroups, folder: Path, device: torch.device
) -> list[Comm]:
    """Collectives along the axes of every mesh of the table."""
    comms = [
        Comm(
            mesh,
            table.micro_batches,
            groups.rank,
            along,
            groups.sent_bytes,
            other_all_reduces(table, number, groups, folder, device),
            device,
        )
        for number, (mesh, along) in enumerate(zip(table.meshes, groups.roles, strict=True))
    ]
    for axis in table.compression:
        if axis.rows:
            comm = comms[axis.mesh]
            find = RowCentroids(ROW_PROGRAMS[axis.rows])
            comm.centroids = {**comm.centroids, axis.role: find}
    for comm, levels in zip(comms, groups.levels, strict=False):
        comm.levels = levels
    return comms
