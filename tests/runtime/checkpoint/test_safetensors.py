"""Files that the safetensors library reads, and its files, read here; damaged ones are refused."""

from pathlib import Path

import pytest
import torch

from plait.ir.errors import FileError
from plait.runtime.checkpoint.safetensors import DTYPES, open_file, write_file

library = pytest.importorskip("safetensors.torch")
TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
} | {f"of {name}": torch.ones(3).to(dtype) for name, dtype in DTYPES.items()}


def write(path: Path) -> Path:
    write_file(
        path, {n: (tuple(t.shape), t.dtype) for n, t in TENSORS.items()}, TENSORS.__getitem__
    )
    return path


def same(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_both_read_the_files_of_the_other(tmp_path: Path) -> None:
    same(library.load_file(write(tmp_path / "ours.safetensors")))
    library.save_file(TENSORS, tmp_path / "theirs.safetensors")
    opened = open_file(tmp_path / "theirs.safetensors")
    same({name: opened.read(name) for name in opened.tensors})


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "file")
    sound = path.read_bytes()
    for data, message in (
        (b"", "a header of 0 bytes in 0"),
        (b"\xff" * 20, "not a safetensors file"),
        (sound[:-1], "its shape needs"),
        (sound.replace(b'"F64"', b'"F99"'), "elements 'F99' are not known"),
        (sound.replace(b'"shape": [2, 3]', b'"shape": [9, 3]'), "'a.weight': bytes 0 to 24"),
        (sound.replace(b'"shape": [2, 3]', b'"shape": [-2,3]'), "not a safetensors file"),
        (sound.replace(b'"dtype"', b'"dtipe"'), "not a safetensors file"),
    ):
        path.write_bytes(data)
        with pytest.raises(FileError, match=message):
            open_file(path)
