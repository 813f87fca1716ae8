"""Writes and reads shards of tensors through torch.distributed.checkpoint, each rank its own.

Equal shards of several ranks are written by one of them. Nothing that is read is executed: what torch
would unpickle is checked against an allow-list, and files that the manifest does not list are not read.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.futures import Future

from ...ir.errors import FileError
from ..comm.process_group import Group
from ..state.local_tensor import LocalTensor, TensorBox
from .stored_tensors import StoredTensors

METADATA = ".metadata"


def write(group: Group, path: Path, tensors: Mapping[str, LocalTensor]) -> None:
    """Write what the ranks of a group have; all together. Raises FileError on all where one fails."""
    writer = FileSystemWriter(path, overwrite=False)
    with group.watch("writing a checkpoint"), _as_file_error(path):
        save({}, storage_writer=writer, planner=_Saver(tensors), process_group=group.handle)


def read(group: Group, path: Path, files: set[str], tensors: Mapping[str, LocalTensor]) -> None:
    """Fill the memory of `tensors` from a folder in which `files` are ours; all ranks together."""
    reader = _Reader(path, files)
    with group.watch("reading a checkpoint"), _as_file_error(path):
        load({}, storage_reader=reader, planner=_Loader(tensors), process_group=group.handle)


@contextmanager
def _as_file_error(path: Path) -> Iterator[None]:
    """Raise what torch.distributed.checkpoint says failed on a rank as FileError, on every rank."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        reason = str(cause) if isinstance(cause, FileError) else f"{type(cause).__name__}: {cause}"
        raise FileError(f"{path}: rank {rank}: {reason[:500]}") from error


class _Saver(DefaultSavePlanner):
    """Plans the writing of chunks; equal ones of several ranks are written once."""

    def __init__(self, tensors: Mapping[str, LocalTensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.chunks = {
            MetadataIndex(name, chunk.offsets): (chunk, tensor.shape)
            for name, tensor in tensors.items()
            for chunk in tensor.chunks
        }

    def create_local_plan(self) -> SavePlan:
        items = [_write_item(index, *found) for index, found in self.chunks.items()]
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self.chunks[write_item.index][0].values


def _write_item(index: MetadataIndex, chunk: TensorBox, shape: tuple[int, ...]) -> WriteItem:
    box = ChunkStorageMetadata(torch.Size(chunk.offsets), chunk.values.shape)
    properties = TensorProperties.create_from_tensor(chunk.values)
    data = TensorWriteData(box, properties, torch.Size(shape))
    return WriteItem(index, WriteItemType.SHARD, tensor_data=data)


class _Loader(LoadPlanner):
    """Plans the reading of chunks into memory that is there."""

    def __init__(self, tensors: Mapping[str, LocalTensor]) -> None:
        self.tensors = tensors

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None
        self.stored = metadata.state_dict_metadata

    def create_local_plan(self) -> LoadPlan:
        items: list[ReadItem] = []
        for name, tensor in self.tensors.items():
            stored = self.stored.get(name)
            if not isinstance(stored, TensorStorageMetadata) or tuple(stored.size) != tensor.shape:
                raise FileError(f"{name} is not there in the shape {list(tensor.shape)}")
            wanted = [
                ChunkStorageMetadata(torch.Size(chunk.offsets), chunk.values.shape)
                for chunk in tensor.chunks
                if chunk.values.numel()
            ]
            items += create_read_items_for_chunk_list(name, stored, wanted)
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise FileError(f"{read_item.dest_index.fqn} holds bytes where a tensor belongs")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        index = read_item.dest_index
        chunks = [c for c in self.tensors[index.fqn].chunks if c.values.numel()]
        assert index.index is not None
        return _part(chunks[index.index].values, read_item.dest_offsets, read_item.lengths)

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing: the tensor is the memory that was asked to be filled."""


class _Reader(FileSystemReader):
    """Reads only files that are listed, and unpickles metadata from an allow-list."""

    def __init__(self, path: Path, files: set[str]) -> None:
        super().__init__(path)
        self.files, self.folder = files, path

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        data = (self.folder / METADATA).read_bytes()
        try:
            metadata = _Unpickler(io.BytesIO(data)).load()
            foreign = {s.relative_path for s in metadata.storage_data.values()} - self.files
        except Exception as error:
            raise FileError(f"{self.folder / METADATA}: not a checkpoint: {error}") from error
        if foreign:
            raise FileError(f"{self.folder}: points outside its manifest: {sorted(foreign)[0]!r}")
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what a plan asks for: files from front to back, every stored chunk read once. None was
        transformed when it was written."""
        wanted: dict[str, dict[MetadataIndex, list[ReadItem]]] = {}
        for item in plan.items:
            name = self.storage_data[item.storage_index].relative_path
            wanted.setdefault(name, {}).setdefault(item.storage_index, []).append(item)
        tensors = StoredTensors()
        for name, chunks in wanted.items():
            with self.fs.create_stream(self.fs.concat_path(self.path, name), "rb") as file:
                for index in sorted(chunks, key=lambda index: self.storage_data[index].offset):
                    stored = self.storage_data[index]
                    archive = self._slice_file(file, stored)
                    _fill(planner, chunks[index], tensors.read(archive, stored.length))
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _fill(planner: LoadPlanner, items: list[ReadItem], chunk: Tensor) -> None:
    """Copy parts of a stored chunk to where they are wanted."""
    for item in items:
        target = planner.resolve_tensor(item)
        part = _part(chunk, item.storage_offsets, item.lengths)
        if target.shape != part.shape:
            raise FileError(f"{item.storage_index.fqn} is stored in another shape")
        target.detach().copy_(part)
        planner.commit_tensor(item, target)


def _part(values: Tensor, offsets: torch.Size, lengths: torch.Size) -> Tensor:
    for dim, (start, length) in enumerate(zip(offsets, lengths, strict=True)):
        values = values.narrow(dim, start, length)
    return values


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member  # as Python before 3.11.4 writes members of enumerations
        if name not in _ALLOWED.get(module, ()):
            raise FileError(f"{module}.{name} is not part of a checkpoint")
        return super().find_class(module, name)


def _member(enumeration: Any, name: str) -> Any:
    if not (isinstance(enumeration, type) and issubclass(enumeration, Enum)):
        raise FileError(f"{name} of {enumeration} is not part of a checkpoint")
    return enumeration[name]


# fmt: off
_ALLOWED: dict[str, frozenset[str]] = {
    "torch.distributed.checkpoint.metadata": frozenset({
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties",
        "ChunkStorageMetadata", "StorageMeta", "_MEM_FORMAT_ENCODING",
    }),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo", "StorageMeta"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "pathlib": frozenset({"PosixPath", "WindowsPath"}),
    "torch": frozenset({
        "Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
        "uint8", "bool", "complex64", "complex128",
    }),
}
# fmt: on
