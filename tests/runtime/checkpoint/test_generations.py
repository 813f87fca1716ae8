"""A checkpoint that is damaged, unfinished or hostile is refused by name and runs nothing."""

import io
import os
import pickle
import resource
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import metadata

from plait.ir.errors import FileError
from plait.runtime.checkpoint import generations as checkpoint
from plait.runtime.checkpoint import tensor_files
from plait.runtime.comm.process_group import Group
from plait.runtime.comm.watchdog import Watchdog
from plait.runtime.launch.session import session
from plait.runtime.state.local_tensor import whole

ALONE = Group("all ranks", (0,), Watchdog(0), None, Counter())
TENSORS = {"model/w": torch.arange(6.0).view(2, 3), "model/n": torch.tensor(3)}


@pytest.fixture(autouse=True)
def _alone():
    with session("gloo"):
        yield


def manifest(steps: int = 1) -> checkpoint.Manifest:
    return checkpoint.Manifest("toy", steps, 0, "AdamW", {"lr": 0.1, "betas": [0.9, 0.99]}, {}, ())


def save(folder: Path, tensors=TENSORS, steps: int = 1, keep: int = 2) -> Path:
    local = {name: whole(tensor) for name, tensor in tensors.items()}
    return checkpoint.save(ALONE, folder, local, manifest(steps), keep)


def test_the_newest_complete_generation_is_read(tmp_path: Path) -> None:
    for steps in (1, 2, 3):
        save(tmp_path, {n: t + steps for n, t in TENSORS.items()}, steps)
    (tmp_path / "generation-00000004").mkdir()
    found, tensors = checkpoint.read_all(ALONE, tmp_path)
    assert (found.steps, found.options) == (3, {"lr": 0.1, "betas": [0.9, 0.99]})
    assert all(torch.equal(tensors[n], TENSORS[n] + 3) for n in TENSORS)
    assert checkpoint.read_all(ALONE, tmp_path, 2)[0].steps == 2
    with pytest.raises(FileError, match=r"no generation 1 .*generation-00000002, "):
        checkpoint.read_all(ALONE, tmp_path, 1)
    assert save(tmp_path).name == "generation-00000005"


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = save(tmp_path)
    for name in (".metadata", "__0_0.distcp"):
        path = folder / name
        sound = path.read_bytes()
        for position in range(0, len(sound), len(sound) // 5):
            data = bytearray(sound)
            data[position] ^= 4
            path.write_bytes(bytes(data))
            with pytest.raises(FileError, match=f"{name}: damaged"):
                checkpoint.read_all(ALONE, tmp_path)
        path.write_bytes(sound[:-1])
        with pytest.raises(FileError, match=f"{name}: .* bytes, the manifest says"):
            checkpoint.read_all(ALONE, tmp_path)
        path.write_bytes(sound)
    checkpoint.read_all(ALONE, tmp_path)


def test_a_damaged_manifest_is_named_and_the_one_before_is_taken_on_request(tmp_path: Path) -> None:
    save(tmp_path, steps=1)
    newest = save(tmp_path, {n: t + 1 for n, t in TENSORS.items()}, steps=2) / checkpoint.MANIFEST
    newest.write_bytes(newest.read_bytes().replace(b'"steps": 2', b'"steps": 3'))
    with pytest.raises(
        FileError, match=r"00000002/manifest.json: \$.digest: damaged.*generation-00000001 is"
    ):
        checkpoint.find(ALONE, tmp_path)
    newest.write_bytes(b"{}")
    with pytest.raises(FileError, match=r"00000002/manifest.json: \$.format"):
        checkpoint.find(ALONE, tmp_path)
    found = checkpoint.find(ALONE, tmp_path, fall_back=True)
    assert (found.manifest.steps, found.path.name) == (1, "generation-00000001")
    assert len(found.problems) == 1


def test_errors_of_the_system_are_ours_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="Not a directory"):
        save(tmp_path / "file" / "folder")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # as a disk that is full
    try:
        with pytest.raises(FileError, match="generation-00000001: rank 0: "):
            save(tmp_path, {"model/w": torch.zeros(50_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path)
    (folder / ".metadata").write_bytes(pickle.dumps(Payload()))
    resign(folder)
    with pytest.raises(FileError, match="mkdir is not part of a checkpoint"):
        checkpoint.read_all(ALONE, tmp_path)
    assert not (tmp_path / "owned").exists()


class Attribute:
    """A pickle of `getattr(owner, name)`: Python before 3.11.4 writes members of enumerations so."""

    def __init__(self, owner: object, name: str) -> None:
        self.what = owner, name

    def __reduce__(self):
        return getattr, self.what


def test_attributes_in_a_checkpoint_are_members_of_enumerations() -> None:
    formats = metadata._MEM_FORMAT_ENCODING
    member = unpickled(Attribute(formats, "TORCH_CONTIGUOUS_FORMAT"))
    assert member is formats.TORCH_CONTIGUOUS_FORMAT
    with pytest.raises(FileError, match="is not part of a checkpoint"):
        unpickled(Attribute(metadata.Metadata, "__init__"))


def unpickled(value: object) -> object:
    return tensor_files._Unpickler(io.BytesIO(pickle.dumps(value))).load()


def test_a_checkpoint_cannot_point_outside(tmp_path: Path) -> None:
    folder = save(tmp_path)
    path = folder / ".metadata"
    path.write_bytes(path.read_bytes().replace(b"__0_0.distcp", b"../../secret"))
    resign(folder)
    with pytest.raises(FileError, match=r"points outside its manifest: .\.\./\.\./secret"):
        checkpoint.read_all(ALONE, tmp_path)


def resign(folder: Path) -> None:
    """What somebody who can write the files can also do: fitting hashes."""
    found = checkpoint.read_manifest(folder)
    files = tuple(checkpoint._stored(folder / f.name) for f in found.files)
    changed = checkpoint.msgspec.structs.replace(found, files=files, digest="")
    changed = checkpoint.msgspec.structs.replace(changed, digest=checkpoint.digest(changed))
    (folder / checkpoint.MANIFEST).write_bytes(checkpoint.dump(changed, checkpoint.FORMAT))
