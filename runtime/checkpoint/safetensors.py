"""Weights as one safetensors file: https://github.com/huggingface/safetensors (format, version 0.4).

8 bytes      length of the header, little endian
header       JSON: by name {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
data         the tensors, row by row, without gaps
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from ...ir.errors import FileError, MismatchError
from ...ir.files.reading import naming
from ..state import unsharded
from ..state.parameters import ParameterStore
from .generations import first_rank, together
from .program_state import ProgramState

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_HEADER_BYTES, METADATA = 100 << 20, "__metadata__"
Offset = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class TensorHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of a file: `data_offsets` are of its bytes behind the header."""

    dtype: str
    shape: tuple[Offset, ...]
    data_offsets: tuple[Offset, Offset]


class Opened(NamedTuple):
    """A file whose header is sound; `start` is where data begins."""

    path: Path
    start: int
    tensors: Mapping[str, TensorHeader]

    def read(self, name: str) -> Tensor:
        """A tensor's values, in new memory."""
        stored = self.tensors[name]
        first, last = stored.data_offsets
        with naming(self.path), self.path.open("rb") as file:
            file.seek(self.start + first)
            data = bytearray(file.read(last - first))
        flat = torch.frombuffer(data, dtype=DTYPES[stored.dtype]) if data else torch.empty(0)
        return flat.to(DTYPES[stored.dtype]).view(stored.shape)


def open_file(path: Path) -> Opened:
    """Read and check a header. Raises FileError naming the tensor that is damaged."""
    with naming(path):
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MOST_HEADER_BYTES, size - 8):
                raise FileError(f"not a safetensors file: a header of {length} bytes in {size}")
            header = file.read(length)
        start = 8 + length
        try:
            fields: dict[str, Any] = msgspec.json.decode(header, type=dict[str, Any])
            fields.pop(METADATA, None)
            tensors = msgspec.convert(fields, dict[str, TensorHeader])
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
            raise FileError(f"not a safetensors file: {str(error)[:200]}") from None
        for name, stored in tensors.items():
            _check(name, stored, size - start)
    return Opened(path, start, tensors)


def _check(name: str, stored: TensorHeader, data_bytes: int) -> None:
    if stored.dtype not in DTYPES:
        raise FileError(f"{name[:80]!r}: elements {stored.dtype[:20]!r} are not known")
    count = 1
    for extent in stored.shape:
        count *= extent
    first, last = stored.data_offsets
    expected = count * DTYPES[stored.dtype].itemsize
    if last - first != expected or last > data_bytes:
        raise FileError(
            f"{name[:80]!r}: bytes {first} to {last} of {data_bytes}, its shape needs {expected}"
        )


def write_file(
    path: Path,
    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    value: Callable[[str], Tensor],
) -> None:
    """Write tensors one by one, each from `value`. The file appears when it is complete."""
    fields: dict[str, Any] = {METADATA: {"format": "pt"}}
    position = 0
    for name, (shape, dtype) in shapes.items():
        end = position + torch.Size(shape).numel() * dtype.itemsize
        fields[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    header = json.dumps(fields).encode()
    header += b" " * (-len(header) % 8)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in shapes:
                file.write(_bytes(value(name)))
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def export_safetensors(program: ProgramState, path: str | Path) -> None:
    """Write all parameters and buffers under their names in the module, shared ones once; all ranks
    together, each tensor whole on them for a moment. Raises FileError on all ranks."""
    store, group, target = program.store, program.groups.everyone, Path(path)
    specs = {n: s for n, s in store.specs.items() if s.kind != "constant"}
    shapes = {n: (s.type.shape, getattr(torch, s.type.dtype)) for n, s in specs.items()}
    remaining = list(shapes)

    def value(name: str) -> Tensor:
        remaining.remove(name)
        return _whole_value(program, name)

    def write() -> None:
        with naming(target):
            write_file(target, shapes, value)

    try:
        if group.rank == 0:
            write()
        else:
            for name in shapes:
                value(name)
    except FileError as error:
        for name in tuple(remaining):  # the others wait for these collectives
            value(name)
        first_rank(group, partial(_raise, error))
    else:
        first_rank(group, lambda: None)


def _raise(error: FileError) -> None:
    raise error


def _whole_value(program: ProgramState, name: str) -> Tensor:
    store = program.store
    return unsharded.broadcast_from_owner(
        store, program.groups, name, lambda: store.gather_value(store.parameters[name])
    )


def load_safetensors(program: ProgramState, path: str | Path) -> None:
    """Set parameters and buffers from a file, under any of their names; those that it lacks stay, and
    optimizer states too. Every rank reads what it needs; all ranks together.

    Raises FileError for a damaged file, MismatchError where a name or shape is not the model's.
    """
    opened = together(program.groups.everyone, lambda: open_file(Path(path)))[0]
    store = program.store
    canonical = {alias: n for n, spec in store.specs.items() for alias in (n, *spec.aliases)}
    for name, stored in opened.tensors.items():
        spec = store.specs.get(canonical.get(name, ""))
        if spec is None or spec.type.shape != stored.shape:
            there = "absent" if spec is None else str(list(spec.type.shape))
            raise MismatchError(f"{path}: {name} is {list(stored.shape)}, in the model {there}")
    for name in opened.tensors:
        if canonical[name] in store.parameters:
            _set(program, store, canonical[name], opened.read(name))


def _set(program: ProgramState, store: ParameterStore, name: str, value: Tensor) -> None:
    store.set_value(name, value)
    if program.updates is not None:
        program.updates.whole.set_value(name, value)
