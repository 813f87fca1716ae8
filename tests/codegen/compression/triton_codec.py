"""Runs the kernels of a printed Triton module, on a GPU or in Triton's interpreter."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from plait.ir.compression.kernel import CompressionKernel
from plait.ir.compression.message_format import MessageFormat
from plait.runtime.compression.backends.codec import Launch


class TritonCodec:
    """Runs kernels of a module that `codegen.compression.triton` printed."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def run(self, kernel: CompressionKernel, launch: Launch) -> None:
        values: list[Any] = [launch.elements]
        values += _side(launch.source, kernel.source, launch.elements)
        values += _side(launch.target, kernel.target, launch.elements)
        for operand in kernel.operands:
            state = launch.states[operand.name]
            values.append(state.view(torch.int16) if operand.element == "bf16" else state)
        if kernel.per_tensor_stat is not None and not kernel.partial:
            values.append(launch.number)
        if kernel.stochastic:
            values += [launch.seed, launch.step]
        grid = (-(-launch.elements // (kernel.tiles * kernel.tile)), kernel.chunks)
        getattr(self.module, kernel.name)[grid](*values, **kernel.launch_options)


def _side(data: Tensor, message_format: MessageFormat | None, elements: int) -> list[Any]:
    """Kernel arguments of a flat tensor, or of messages: codes, their stride, scales, their stride."""
    if message_format is None:
        return [data]
    total_bytes, code_bytes = message_format.bytes(elements), message_format.codes_bytes(elements)
    if message_format.plain:
        kind = torch.int16 if message_format.codes == "bf16" else torch.float32
        return [data.view(kind), total_bytes // kind.itemsize]
    return [
        data.view(torch.int32),
        total_bytes // 4,
        data[code_bytes:].view(torch.float32),
        total_bytes // 4,
    ]
