"""Tensors of a file of torch.distributed.checkpoint: each once, its header read once for all equal ones.

The file holds one archive of `torch.save` after the other: a header, which says element type, shape and
strides, and the bytes. Thousands of small shards have few headers, and `torch.load` spends its time on
those.
"""

from __future__ import annotations

import io
from typing import IO, NamedTuple
from zipfile import ZipFile

import torch
from torch import Tensor

SMALL_BYTES = 1 << 20  # of an archive that is read whole; torch reads larger ones from the file
HEADER, VALUES, BYTE_ORDER = "/data.pkl", "/data/0", "/byteorder"


class _Layout(NamedTuple):
    """What a header says of a tensor; `stored_bytes` are those of its values."""

    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[int, ...]
    first: int
    stored_bytes: int


class StoredTensors:
    """Reads archives of single tensors on the CPU; nothing in them is executed."""

    def __init__(self) -> None:
        self.layouts: dict[tuple[bytes, ...], _Layout] = {}

    def read(self, archive: IO[bytes], length: int) -> Tensor:
        """The tensor of an archive of so many bytes. Raises what `zipfile` and `torch.load` raise of a
        damaged one."""
        if length > SMALL_BYTES:
            return _load(archive)
        data = archive.read()
        with ZipFile(io.BytesIO(data)) as records:
            parts = {name[name.find("/") :]: name for name in records.namelist()}
            if not {HEADER, VALUES, BYTE_ORDER} <= parts.keys():
                return _load(io.BytesIO(data))
            header = records.read(parts[HEADER]), records.read(parts[BYTE_ORDER])
            layout = self.layouts.get(header)
            if layout is None:
                tensor = _load(io.BytesIO(data))
                self.layouts[header] = _layout(tensor)
                return tensor
            values = bytearray(records.read(parts[VALUES]))
        if not values or len(values) != layout.stored_bytes:
            return _load(io.BytesIO(data))
        flat = torch.frombuffer(values, dtype=layout.dtype)
        return flat.as_strided(layout.shape, layout.strides, layout.first)


def _load(archive: IO[bytes]) -> Tensor:
    return torch.load(archive, map_location="cpu", weights_only=True)


def _layout(tensor: Tensor) -> _Layout:
    stored = tensor.untyped_storage().nbytes()
    first = int(tensor.storage_offset())
    return _Layout(tensor.dtype, tensor.shape, tensor.stride(), first, stored)
