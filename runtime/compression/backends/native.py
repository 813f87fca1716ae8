"""The compiled backend: C++ sources built once, kept in a private directory, loaded by ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ....ir.compression.kernel import CompressionKernel
from ....ir.compression.message_format import MessageFormat
from ....ir.errors import FileError, PlaitError
from ....ir.files import private_cache
from ...torch_private import user_cache_dir
from .codec import Codec, Launch
from .reference import ReferenceCodec

# fmt: off
FLAGS = (
    "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-Wno-psabi", "-std=c++17", "-shared", "-fPIC",
)
# fmt: on


class BuildError(PlaitError):
    """A kernel could not be compiled: the message says by what, and ends with what it said."""

    exit_code = 1


class NativeCodec:
    """Runs kernels of a library that `build` made; those it lacks, such as variants with other
    constants, by the reference."""

    name = "C++"

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))

    @property
    def uncompressed(self) -> Codec:
        """The codec of exchanges without compression: copies and sums, which torch does as fast."""
        return ReferenceCodec()

    def run(self, kernel: CompressionKernel, launch: Launch) -> None:
        if not hasattr(self.library, kernel.name):
            ReferenceCodec().run(kernel, launch)
            return
        states = [launch.states[operand.name] for operand in kernel.operands]
        for tensor in (launch.source, launch.target, *states):
            assert tensor.is_contiguous()
            assert tensor.device.type == "cpu"
        pointers = (ctypes.c_void_p * max(len(states), 1))(*(s.data_ptr() for s in states))
        number = 0.0 if launch.number is None else float(launch.number)
        getattr(self.library, kernel.name)(
            ctypes.c_int64(launch.elements),
            *_messages(launch.source, kernel.source, launch.elements),
            *_messages(launch.target, kernel.target, launch.elements),
            pointers,
            ctypes.c_float(number),
            ctypes.c_uint64(launch.seed),
            ctypes.c_uint32(launch.step & 0xFFFFFFFF),
        )


def _messages(
    data: Tensor, message_format: MessageFormat | None, elements: int
) -> tuple[ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]:
    """Address of the messages, bytes of codes and bytes in total per message."""
    code_bytes, total_bytes = (
        (message_format.codes_bytes(elements), message_format.bytes(elements))
        if message_format
        else (0, 0)
    )
    assert data.dtype == (torch.uint8 if message_format else torch.float32)
    return ctypes.c_void_p(data.data_ptr()), ctypes.c_int64(code_bytes), ctypes.c_int64(total_bytes)


def build(source: str, directory: Path, compiler: str = "g++") -> Path:
    """The shared library of a C++ source, from `directory` if it is there unharmed.

    The name is that of source, flags, compiler and instruction set. Raises BuildError without a
    working compiler, or when others can write to the directory.
    """
    private(directory)
    target = _run([compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull], "")
    key = hashlib.sha256("\0".join([source, *FLAGS, target]).encode()).hexdigest()[:32]
    library, digest = directory / f"{key}.so", directory / f"{key}.sha256"
    if _is_whole(library, digest):
        return library
    try:
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            built = Path(scratch) / "built.so"
            _run([compiler, *FLAGS, "-x", "c++", "-", "-o", str(built)], source)
            note = Path(scratch) / "note"
            note.write_text(_digest(built))
            os.replace(built, library)
            os.replace(note, digest)
    except OSError as error:
        raise BuildError(f"{library} cannot be written: {error.strerror}") from error
    return library


def _is_whole(library: Path, digest: Path) -> bool:
    try:
        return digest.read_bytes() == _digest(library).encode()
    except OSError:  # not there, or not to be read
        return False


def cache_directory() -> Path:
    """The user's cache directory of compiled kernels."""
    return Path(user_cache_dir("plait")) / "kernels"


def build_once(source: str, beside: Path) -> Path:
    """As `build`: in the user's cache, or in a directory `beside` a program where there is none."""
    try:
        private(cache_directory())
    except (BuildError, RuntimeError):  # not the user's alone, or no home
        return build(source, beside)
    return build(source, cache_directory())


def private(directory: Path) -> None:
    """Create a directory that only its owner can write to. Raises BuildError if that fails."""
    try:
        private_cache.private(directory)
    except FileError as error:
        raise BuildError(str(error)) from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(command: list[str], text: str) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BuildError(
            f"no C++ compiler {command[0]!r}: install one, or use the reference codec"
        ) from None
    if done.returncode:
        raise BuildError(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout
