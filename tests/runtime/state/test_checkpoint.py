"""A checkpoint that is damaged, unfinished or hostile is refused by name and runs nothing."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from plait.ir.errors import FileError
from plait.runtime.launch.session import session
from plait.runtime.state import checkpoint

TENSORS = {"model/w": torch.arange(6.0).view(2, 3), "model/n": torch.tensor(3)}


@pytest.fixture(autouse=True)
def _alone():
    with session("gloo"):
        yield


def manifest(steps: int = 1) -> checkpoint.Manifest:
    return checkpoint.Manifest("toy", steps, 0, "AdamW", {"lr": 0.1, "betas": [0.9, 0.99]}, {}, ())


def test_the_newest_complete_generation_is_read(tmp_path: Path) -> None:
    for steps in (1, 2, 3):
        checkpoint.save(tmp_path, {n: t + steps for n, t in TENSORS.items()}, manifest(steps))
    (tmp_path / "generation-00000004").mkdir()
    found, tensors = checkpoint.read(tmp_path)
    assert (found.steps, found.options) == (3, {"lr": 0.1, "betas": [0.9, 0.99]})
    assert all(torch.equal(tensors[n], TENSORS[n] + 3) for n in TENSORS)
    assert checkpoint.read(tmp_path, 2)[0].steps == 2
    with pytest.raises(FileError, match=r"no generation 1 .*generation-00000002, "):
        checkpoint.read(tmp_path, 1)
    assert checkpoint.save(tmp_path, TENSORS, manifest()).name == "generation-00000005"


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, TENSORS, manifest())
    for name in (".metadata", "__0_0.distcp"):
        path = folder / name
        whole = path.read_bytes()
        for position in range(0, len(whole), len(whole) // 5):
            data = bytearray(whole)
            data[position] ^= 4
            path.write_bytes(bytes(data))
            with pytest.raises(FileError, match=f"{name}: damaged"):
                checkpoint.read(tmp_path)
        path.write_bytes(whole[:-1])
        with pytest.raises(FileError, match=f"{name}: .* bytes, the manifest says"):
            checkpoint.read(tmp_path)
        path.write_bytes(whole)
    checkpoint.read(tmp_path)


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = checkpoint.save(tmp_path, TENSORS, manifest())
    (folder / ".metadata").write_bytes(pickle.dumps(Payload()))
    resign(folder)
    with pytest.raises(FileError, match="mkdir is not part of a checkpoint"):
        checkpoint.read(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_cannot_point_outside(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, TENSORS, manifest())
    path = folder / ".metadata"
    path.write_bytes(path.read_bytes().replace(b"__0_0.distcp", b"../../secret"))
    resign(folder)
    with pytest.raises(FileError, match=r"points outside its manifest: .\.\./\.\./secret"):
        checkpoint.read(tmp_path)


def resign(folder: Path) -> None:
    """What somebody who can write the files can also do: fitting hashes."""
    found = checkpoint.read_manifest(folder)
    files = tuple(checkpoint._stored(folder / f.name) for f in found.files)
    changed = checkpoint.msgspec.structs.replace(found, files=files)
    (folder / checkpoint.MANIFEST).write_bytes(checkpoint.dump(changed, checkpoint.FORMAT))
