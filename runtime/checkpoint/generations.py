"""Generations of a checkpoint: folders that survive being killed at any instant.

    folder/generation-00000007/*.distcp, .metadata  torch.distributed.checkpoint
                               manifest.json        names, sizes, hashes; renamed into place last

A generation without a manifest does not exist. A directory is never written twice. Tensors are stored as
shards of the whole ones, named as in the user's module, so any plan and any number of ranks can load
them. Ranks must share the file system.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import file_digest
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import torch
from torch import Tensor

from ...ir.errors import FileError
from ...ir.files.json_files import digest, dump
from ...ir.files.reading import naming, read_verified
from ...ir.model.tensor import ITEM_BYTES
from ...ir.model.verify import require
from ...ir.ranges import Amount, Bytes, Index, Integer
from ..comm.process_group import Group
from ..state.local_tensor import LocalTensor, whole
from ..state.optimizer_state import StoredGroup

MANIFEST, FORMAT, PREFIX = "manifest.json", "plait/checkpoint", "generation-"
KEEP = 2
T = TypeVar("T")


class Counts(NamedTuple):
    """Batches and samples that a program has seen."""

    batches: int
    samples: int


class StoredFile(msgspec.Struct, frozen=True):
    name: str
    bytes: Bytes
    sha256: str


class StoredTensor(msgspec.Struct, frozen=True, order=True):
    name: str
    shape: tuple[Bytes, ...]
    dtype: str


class Manifest(msgspec.Struct, frozen=True):
    """Contents of a generation. `options` are the optimizer's hyperparameters, those of its first group,
    `numbers` the plain numbers of its state by tensor name, `exchange_counts` the number of exchanges by
    bucket. `batches` were seen in `steps` of the optimizer (None: as many), and
    `samples` in them (None: as many as the program's batches have). `loss_scale` is that of float16
    training (0: none), unchanged for `loss_scale_steps`; `digest` is of all the rest."""

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
    samples: Index | None = None
    groups: tuple[StoredGroup, ...] = ()
    loss_scale: Amount = 0.0
    loss_scale_steps: Index = 0
    digest: str = ""


def save(
    group: Group,
    folder: Path,
    tensors: Mapping[str, LocalTensor],
    manifest: Manifest,
    keep: int = KEEP,
) -> Path:
    """Write a new generation; see `begin` and `complete`. Gives its directory."""
    path = begin(group, folder)
    complete(group, path, tensors, manifest, keep)
    return path


def begin(group: Group, folder: Path) -> Path:
    """The directory of a new generation, which begins to exist when complete; all ranks together."""
    return first_rank(group, naming(folder)(lambda: _new_generation(folder)))


def complete(
    group: Group,
    path: Path,
    tensors: Mapping[str, LocalTensor],
    manifest: Manifest,
    keep: int = KEEP,
) -> None:
    """Write a generation, and remove all but the last `keep`; all ranks of the group together. Each
    gives what it has of the tensors; the manifest is rank 0's. Leaves nothing where it fails."""
    from . import (
        tensor_files,  # imports torch's checkpoints: half a second that no start should pay
    )

    try:
        tensor_files.write(group, path, tensors)
        files = together(group, lambda: _files_of(path, group.rank))
        described = together(group, lambda: describe(tensors))
        manifest = msgspec.structs.replace(
            manifest,
            files=tuple(sorted((f for row in files for f in row), key=lambda f: f.name)),
            tensors=tuple(sorted({t.name: t for row in described for t in row}.values())),
        )
        first_rank(group, naming(path)(lambda: _commit(path, manifest)))
    except FileError:
        if group.rank == 0:
            shutil.rmtree(path, ignore_errors=True)
        raise
    if group.rank == 0:
        with suppress(OSError):  # the new generation is there; old ones may go the next time
            _prune(path, max(keep, 1))


def describe(tensors: Mapping[str, LocalTensor]) -> list[StoredTensor]:
    """Names, shapes and types of what a rank has."""
    return [
        StoredTensor(name, tensor.shape, str(tensor.chunks[0].values.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
        if tensor.chunks
    ]


def find(
    group: Group, folder: Path, generation: int | None = None, *, fall_back: bool = False
) -> Generation:
    """The newest complete generation, or the one asked for, with all its hashes checked; all ranks
    together. With `fall_back`, the newest that is sound.

    Raises FileError naming the file that is missing or damaged.
    """
    complete = first_rank(group, naming(folder)(lambda: generations(folder)))
    candidates = _candidates(folder, complete, generation)
    problems = list[str]()
    for path in candidates:
        manifest, problem = _sound(group, path)
        if manifest is not None:
            return Generation(path, manifest, tuple(problems))
        problems.append(problem)
        if not fall_back:
            break
    others = [p for p in complete if p != candidates[0]]
    hint = (
        f"; {others[-1].name} is there too: load it by its number, or with fall_back"
        if others
        else ""
    )
    raise FileError(f"{problems[0]}{hint}")


class Generation(NamedTuple):
    """A sound generation; `problems` of newer ones, which are not."""

    path: Path
    manifest: Manifest
    problems: tuple[str, ...] = ()

    @property
    def files(self) -> set[str]:
        return {file.name for file in self.manifest.files}


def _sound(group: Group, path: Path) -> tuple[Manifest | None, str]:
    """The manifest of a generation, or what is wrong with it or a file; each rank checks some files."""

    def check() -> list[str]:
        files = read_manifest(path).files[group.rank :: group.size]
        return [problem for file in files if (problem := _problem(path, file))]

    try:
        rows = together(group, check)
        problems = [problem for row in rows for problem in row]
        return (None, problems[0]) if problems else (read_manifest(path), "")
    except FileError as error:
        return None, str(error)


def read_all(
    group: Group, folder: Path, generation: int | None = None
) -> tuple[Manifest, dict[str, Tensor]]:
    """The whole tensors of a generation, on every rank."""
    from . import tensor_files

    newest = find(group, folder, generation)
    tensors = {
        t.name: torch.empty(t.shape, dtype=getattr(torch, t.dtype)) for t in newest.manifest.tensors
    }
    wanted = {name: whole(tensor) for name, tensor in tensors.items()}
    tensor_files.read(group, newest.path, newest.files, wanted)
    return newest.manifest, tensors


def read_manifest(path: Path) -> Manifest:
    """The manifest of a generation; raises FileError naming the file where it is damaged."""
    return read_verified(path / MANIFEST, Manifest, FORMAT, verify_manifest)


def verify_manifest(manifest: Manifest) -> None:
    """Raises FileError naming the JSON path: the digest is that of the rest; tensors stand once each,
    are of known types, and fit into the files."""
    rest = msgspec.structs.replace(manifest, digest="")
    sound = not manifest.digest or manifest.digest == digest(rest)
    require(sound, "$.digest", "damaged: it is not the digest of the rest")
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


def _candidates(folder: Path, complete: list[Path], generation: int | None) -> list[Path]:
    """Generations that may be loaded, the best first."""
    candidates = [p for p in complete if generation in (None, _number(p))]
    if not candidates:
        which = "no complete generation" if generation is None else f"no generation {generation}"
        available = ", ".join(p.name for p in complete) or "nothing complete"
        raise FileError(f"{folder}: {which} of a checkpoint; there is {available}")
    return candidates[::-1]


def _commit(path: Path, manifest: Manifest) -> None:
    """Make the generation exist: its manifest appears in one rename, with everything on disk."""
    manifest = msgspec.structs.replace(manifest, digest=digest(manifest))
    temporary = path / f"{MANIFEST}.tmp"
    with temporary.open("wb") as file:
        file.write(dump(manifest, FORMAT))
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(path)
    temporary.rename(path / MANIFEST)
    _sync_directory(path)
    _sync_directory(path.parent)


def _prune(newest: Path, keep: int) -> None:
    """Remove all but the last generations; one that is being removed loses its manifest first."""
    retained = {*generations(newest.parent)[-keep:], newest}
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


def _files_of(path: Path, rank: int) -> list[StoredFile]:
    """What a rank has written of a generation."""
    from .tensor_files import METADATA

    with naming(path):
        files = sorted(path.glob(f"__{rank}_*"))
    files += [path / METADATA] if rank == 0 else []
    return [_stored(file) for file in files]


def _stored(path: Path) -> StoredFile:
    with naming(path), path.open("rb") as file:
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


def first_rank(group: Group, make: Callable[[], T]) -> T:
    """Result of `make` on rank 0, on every rank; raises its error on every rank."""
    outcome = _tried(make) if group.rank == 0 else (None, None)
    value, error = group.broadcast_object(outcome, "what rank 0 did with the checkpoint")
    if error is not None:
        raise FileError(error)
    return cast(T, value)


def together(group: Group, make: Callable[[], T]) -> list[T]:
    """Results of `make` on all ranks, on every rank; raises the first error on every rank."""
    rows = group.gather_objects(_tried(make), "what ranks did with the checkpoint")
    for rank, (_, error) in enumerate(rows):
        if error is not None:
            raise FileError(f"{error} (on rank {rank})" if group.size > 1 else error)
    return [cast(T, value) for value, _ in rows]


def _tried(make: Callable[[], T]) -> tuple[T | None, str | None]:
    """The result, or what went wrong."""
    try:
        return make(), None
    except (OSError, FileError) as error:
        return None, str(error)
