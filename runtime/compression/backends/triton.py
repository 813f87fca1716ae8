"""The backend of GPUs: Triton kernels, which a program has beside its C++ ones."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ....ir.compression.kernel import CompressionKernel
from ....ir.compression.message_format import MessageFormat
from ....ir.errors import FileError, UsageError
from .codec import Codec, Launch


class TritonCodec:
    """Runs the kernels of a module that `codegen.compression.triton` printed: on a GPU, or where Triton
    was imported as an interpreter, on the CPU. Runs no others: it raises UsageError."""

    name = "Triton"

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    @property
    def uncompressed(self) -> Codec:
        """The codec of messages that are not compressed: this one."""
        return self

    def run(self, kernel: CompressionKernel, launch: Launch) -> None:
        function = getattr(self.module, kernel.name, None)
        if function is None:
            raise UsageError(
                f"{self.module.__file__} has no kernel {kernel.name}: on a GPU, constants such as the "
                "decay of a momentum are those that the program was compiled with"
            )
        grid = (-(-launch.elements // (kernel.tiles * kernel.tile)), kernel.chunks)
        function[grid](*_arguments(kernel, launch), **kernel.launch_options)


def triton_codec(path: Path) -> TritonCodec:
    """The kernels in a file of a program. Raises FileError without it, UsageError without Triton."""
    name = f"_plait_kernels_{sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = spec_from_file_location(name, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise FileError(f"{path} is missing: compile the program again")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise UsageError(
            "compressed communication on a GPU needs Triton: pip install 'plait[triton]'"
        ) from None
    return TritonCodec(module)


def _arguments(kernel: CompressionKernel, launch: Launch) -> Iterator[Any]:
    """Arguments of a kernel, in the order of `codegen.compression.triton.arguments`."""
    yield launch.elements
    yield from _messages(launch.source, kernel.source, launch.elements)
    yield from _messages(launch.target, kernel.target, launch.elements)
    for operand in kernel.operands:
        state = launch.states[operand.name]
        yield state.view(torch.int16) if operand.element == "bf16" else state
    if kernel.per_tensor_stat is not None and not kernel.partial:
        yield launch.number
    if kernel.stochastic:
        yield from (launch.seed, launch.step)


def _messages(data: Tensor, message_format: MessageFormat | None, elements: int) -> Iterator[Any]:
    """A flat tensor, or messages: codes, their stride, scales, their stride; strides in elements."""
    if message_format is None:
        yield data
        return
    total_bytes, code_bytes = message_format.bytes(elements), message_format.codes_bytes(elements)
    if message_format.plain:
        kind = torch.int16 if message_format.codes == "bf16" else torch.float32
        yield from (data.view(kind), total_bytes // kind.itemsize)
        return
    yield from (data.view(torch.int32), total_bytes // 4)
    yield from (data[code_bytes:].view(torch.float32), total_bytes // 4)
