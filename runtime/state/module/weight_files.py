"""Pretrained weights by name, mapped into memory: only what is sliced out of them is read.

A `state_dict`, a safetensors file, a file of `torch.save`, or a folder of either kind, in shards or
not, as Hugging Face writes it. A safetensors file is

    8 bytes: length of the header | header, JSON: name -> dtype, shape, data_offsets | data
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....ir.errors import FileError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
MOST_HEADER = 100 << 20  # bytes
KINDS = (".safetensors", ".bin", ".pt", ".pth")
INDEX = ".index.json"

Weights = Mapping[str, Tensor] | str | Path


def open_weights(weights: Weights) -> Mapping[str, Tensor]:
    """The tensors by name. Raises FileError naming the file and what is wrong with it."""
    if isinstance(weights, Mapping):
        return weights
    path = Path(weights)
    if not path.is_dir():
        return _file(path)
    tensors: dict[str, Tensor] = {}
    for file in _files(path):
        tensors.update(_file(file))
    return tensors


def _files(folder: Path) -> list[Path]:
    """The weight files of a folder: those of its index, else all of the first kind it has."""
    for index in sorted(folder.glob(f"*{INDEX}")):
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
            files = [folder / Path(str(name)).name for name in sorted(names)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileError(f"{index}: no index of weight files: {error!r}") from error
        return files
    for kind in KINDS:
        if files := sorted(folder.glob(f"*{kind}")):
            return files
    raise FileError(f"{folder}: no weights ({', '.join(f'*{kind}' for kind in KINDS)}) in it")


def _file(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise FileError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        first = str(error).split("\n")[0]
        raise FileError(f"{path}: torch cannot read weights from it: {first}") from error
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise FileError(f"{path}: not a state_dict, tensors by name")
    return content


def _safetensors(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MOST_HEADER):
            raise FileError(f"{path}: a header of {length} bytes in a file of {size}")
        text = file.read(length)
    try:
        header = json.loads(text)
        declared = {n: _declaration(n, e, path) for n, e in header.items() if n != "__metadata__"}
    except (ValueError, AttributeError) as error:
        raise FileError(f"{path}: broken header: {error}") from error
    data = 8 + length
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return {
        name: _view(content, data + start, dtype, shape)
        for name, (dtype, shape, start) in _within(declared, size - data, path)
    }


Declared = tuple[torch.dtype, tuple[int, ...], int]


def _declaration(name: str, item: Mapping[str, Any], path: Path) -> tuple[Declared, int]:
    """Type, shape and first byte of a tensor, and the byte after its last."""
    dtype = DTYPES.get(str(item.get("dtype")))
    shape, offsets = item.get("shape"), item.get("data_offsets")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [-1]
    if (
        dtype is None
        or len(offsets or ()) != 2
        or not all(type(n) is int and n >= 0 for n in numbers)
    ):
        raise FileError(f"{path}: $.{name:.80}: not a tensor: {item!s:.120}")
    return (dtype, tuple(shape or ()), numbers[-2]), numbers[-1]


def _within(
    declared: Mapping[str, tuple[Declared, int]], size: int, path: Path
) -> Iterable[tuple[str, Declared]]:
    """The tensors whose bytes are as many as their shape says, inside the file."""
    for name, ((dtype, shape, start), end) in declared.items():
        expected = torch.Size(shape).numel() * dtype.itemsize
        if end - start != expected or end > size:
            raise FileError(
                f"{path}: $.{name:.80}: bytes {start} to {end} of {size} for {list(shape)} of {dtype}"
            )
        yield name, (dtype, shape, start)


def _view(content: Tensor, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    part = content[start : start + torch.Size(shape).numel() * dtype.itemsize]
    aligned = part if start % dtype.itemsize == 0 else part.clone()
    return aligned.view(dtype).view(shape)
