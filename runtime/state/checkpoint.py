"""Checkpoints that survive being killed at any instant, and load under another plan.

    folder/generation-00000007/*.distcp, .metadata  torch.distributed.checkpoint
                               manifest.json        names, sizes, hashes; renamed into place last

A generation without a manifest does not exist. A directory is never written twice. The tensors are
unsharded and named as in the user's module, so any plan and any number of ranks can load them; for now
each rank holds all of them in its CPU memory for that time. Ranks must share the file system.
Nothing in a checkpoint is executed: what torch would unpickle is checked against an allow-list.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable
from hashlib import file_digest
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from ...ir.errors import FileError
from ...ir.files.json_files import dump
from ...ir.files.reading import read_verified
from ...ir.model.tensor import ITEM_BYTES
from ...ir.model.verify import require
from ...ir.ranges import Bytes, Index, Integer

MANIFEST, FORMAT, PREFIX = "manifest.json", "plait/checkpoint", "generation-"
KEEP = 2
T = TypeVar("T")


class StoredFile(msgspec.Struct, frozen=True):
    name: str
    bytes: Bytes
    sha256: str


class StoredTensor(msgspec.Struct, frozen=True):
    name: str
    shape: tuple[Bytes, ...]
    dtype: str


class StoredGroup(msgspec.Struct, frozen=True):
    """Options of a parameter group of the optimizer, and the names of its tensors."""

    options: dict[str, Any]
    names: tuple[str, ...]


class Manifest(msgspec.Struct, frozen=True):
    """Contents of a generation. `options` are the optimizer's hyperparameters, those of its first group,
    `numbers` the plain numbers of its state by tensor name, `exchange_counts` the number of exchanges by
    bucket. `batches` were seen in `steps` of the optimizer (None: as many). `loss_scale` is that of
    float16 training (0: none), unchanged for `loss_scale_steps`."""

    model: str
    steps: Index
    seed: Integer
    optimizer: str
    options: dict[str, Any]
    numbers: dict[str, float]
    tensors: tuple[StoredTensor, ...]
    files: tuple[StoredFile, ...] = ()
    exchange_counts: dict[str, Index] = {}
    batches: Index | None = None
    groups: tuple[StoredGroup, ...] = ()
    loss_scale: float = 0.0
    loss_scale_steps: int = 0


def save(folder: Path, tensors: dict[str, Tensor], manifest: Manifest) -> Path:
    """Write a new generation; all ranks call this with the same arguments. Gives its directory."""
    rank = dist.get_rank()
    path = _first_rank(lambda: _new_generation(folder))
    save_tensors(dict(tensors), storage_writer=FileSystemWriter(path, overwrite=False))
    mine = sorted(path.glob(f"__{rank}_*")) + ([path / ".metadata"] if rank == 0 else [])
    files = gather([_stored(file) for file in mine])
    manifest = msgspec.structs.replace(
        manifest,
        files=tuple(sorted(files, key=lambda f: f.name)),
        tensors=tuple(
            StoredTensor(name, tuple(t.shape), str(t.dtype).removeprefix("torch."))
            for name, t in sorted(tensors.items())
        ),
    )
    _first_rank(lambda: _commit(path, manifest))
    return path


def read(folder: Path, generation: int | None = None) -> tuple[Manifest, dict[str, Tensor]]:
    """The newest complete generation (or the one asked for), hashes checked, on every rank.

    Raises FileError naming the file that is missing or damaged.
    """
    path = _first_rank(lambda: _find(folder, generation))
    manifest = read_manifest(path)
    rank, world = dist.get_rank(), dist.get_world_size()
    problems = gather([p for f in manifest.files[rank::world] if (p := _problem(path, f))])
    if problems:
        others = [g for g in generations(folder) if g != path]
        hint = f"; {others[-1].name} is there too: load(…, generation=N)" if others else ""
        raise FileError(f"{problems[0]}{hint}")
    tensors = {
        t.name: torch.empty(t.shape, dtype=getattr(torch, t.dtype)) for t in manifest.tensors
    }
    reader = Reader(path, {f.name for f in manifest.files})
    reader.read_metadata()  # raises FileError for a file that is not ours
    load_tensors(tensors, storage_reader=reader)
    return manifest, tensors


def read_manifest(path: Path) -> Manifest:
    return read_verified(path / MANIFEST, Manifest, FORMAT, verify_manifest)


def verify_manifest(manifest: Manifest) -> None:
    """Raises FileError naming the JSON path: tensors once each, of known types; groups have names."""
    names = [tensor.name for tensor in manifest.tensors]
    require(len(set(names)) == len(names), "$.tensors", "one stands twice")
    for i, tensor in enumerate(manifest.tensors):
        known = tensor.dtype in ITEM_BYTES
        require(known, f"$.tensors[{i}].dtype", f"unknown element type {tensor.dtype!r:.80}")
        size = prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
        there = sum(file.bytes for file in manifest.files)
        require(size <= there, f"$.tensors[{i}].shape", f"more than the {there} bytes of all files")


def verify_generations(folder: Path) -> None:
    """Raises FileError for a file of the newest generation that is missing or damaged; `folder` holds
    generations or is one."""
    newest = folder if (folder / MANIFEST).is_file() else generations(folder)[-1]
    for stored in read_manifest(newest).files:
        problem = _problem(newest, stored)
        if problem:
            raise FileError(problem)


def generations(folder: Path) -> list[Path]:
    """Complete generations, oldest first."""
    complete = [
        p for p in folder.glob(f"{PREFIX}*") if (p / MANIFEST).is_file() and _number(p) >= 0
    ]
    return sorted(complete, key=_number)


def _number(path: Path) -> int:
    text = path.name.removeprefix(PREFIX)
    return int(text) if text.isdecimal() and len(text) < 18 else -1


def _new_generation(folder: Path) -> Path:
    numbers = [_number(p) for p in folder.glob(f"{PREFIX}*")] if folder.is_dir() else []
    path = folder / f"{PREFIX}{max(numbers, default=0) + 1:08d}"
    path.mkdir(parents=True)
    return path


def _find(folder: Path, generation: int | None) -> Path:
    complete = generations(folder)
    candidates = [p for p in complete if generation in (None, _number(p))]
    if not candidates:
        which = "no complete generation" if generation is None else f"no generation {generation}"
        available = ", ".join(p.name for p in complete) or "nothing complete"
        raise FileError(f"{folder}: {which} of a checkpoint; there is {available}")
    return candidates[-1]


def _commit(path: Path, manifest: Manifest) -> None:
    """Make the generation exist: its manifest appears in one rename, with everything on disk."""
    temporary = path / f"{MANIFEST}.tmp"
    with temporary.open("wb") as file:
        file.write(dump(manifest, FORMAT))
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(path)
    temporary.rename(path / MANIFEST)
    _sync_directory(path)
    _sync_directory(path.parent)
    _prune(path)


def _prune(newest: Path) -> None:
    """Remove all but the last generations; one that is being removed loses its manifest first."""
    retained = {*generations(newest.parent)[-KEEP:], newest}
    for path in newest.parent.glob(f"{PREFIX}*"):
        if path not in retained and 0 <= _number(path) < _number(newest):
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stored(path: Path) -> StoredFile:
    with path.open("rb") as file:
        return StoredFile(path.name, path.stat().st_size, file_digest(file, "sha256").hexdigest())


def _problem(folder: Path, stored: StoredFile) -> str | None:
    """Error message for a missing or damaged file, None if it is intact."""
    path = folder / stored.name
    if path.name != stored.name or not path.is_file():
        return f"{path}: missing from the checkpoint"
    stored_now = _stored(path)
    if stored_now.bytes != stored.bytes:
        return f"{path}: {stored_now.bytes} bytes, the manifest says {stored.bytes}"
    if stored_now.sha256 != stored.sha256:
        return f"{path}: damaged (sha256 {stored_now.sha256[:12]}, not {stored.sha256[:12]})"
    return None


def _first_rank(make: Callable[[], T]) -> T:
    """Result of `make` on rank 0, broadcast to every rank; raises its error on every rank."""
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome = [make(), None]
        except (OSError, FileError) as error:
            outcome = [None, str(error)]
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise FileError(str(outcome[1]))
    return outcome[0]


def gather(mine: list[T]) -> list[T]:
    """The lists of all ranks, one after the other."""
    rows: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(rows, mine)
    return [item for row in rows for item in row]


class Reader(FileSystemReader):
    """Reads only what the manifest lists, and unpickles metadata from an allow-list."""

    def __init__(self, path: Path, names: set[str]) -> None:
        super().__init__(path)
        self.names, self.folder = names, path

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        data = (self.folder / ".metadata").read_bytes()
        try:
            metadata = _Unpickler(io.BytesIO(data)).load()
            foreign = {s.relative_path for s in metadata.storage_data.values()} - self.names
        except Exception as error:
            raise FileError(f"{self.folder / '.metadata'}: not a checkpoint: {error}") from error
        if foreign:
            raise FileError(f"{self.folder}: points outside its manifest: {sorted(foreign)[0]!r}")
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise FileError(f"{module}.{name} is not part of a checkpoint")
        return super().find_class(module, name)


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
