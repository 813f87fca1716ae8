"""The Triton backend: kernels of a generated module, on a GPU or in Triton's interpreter."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ....ir.compression.kernel import Kernel
from ....ir.compression.wire import Wire
from .codec import Launch


class Generated:
    """Runs kernels of a module that `codegen.compression.triton` printed."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def run(self, kernel: Kernel, launch: Launch) -> None:
        values: list[Any] = [launch.elements]
        values += _side(launch.source, kernel.source, launch.elements)
        values += _side(launch.target, kernel.target, launch.elements)
        for operand in kernel.operands:
            state = launch.states[operand.name]
            values.append(state.view(torch.int16) if operand.element == "bf16" else state)
        if kernel.whole is not None and not kernel.partial:
            values.append(launch.number)
        if kernel.stochastic:
            values += [launch.seed, launch.step]
        grid = (-(-launch.elements // (kernel.tiles * kernel.tile)), kernel.chunks)
        getattr(self.module, kernel.name)[grid](*values, **kernel.launch_options)


def _side(data: Tensor, wire: Wire | None, elements: int) -> list[Any]:
    """A flat tensor, or messages: their codes, the distance between them, scales, theirs."""
    if wire is None:
        return [data]
    whole, codes = wire.bytes(elements), wire.codes_bytes(elements)
    if wire.plain:
        kind = torch.int16 if wire.codes == "bf16" else torch.float32
        return [data.view(kind), whole // kind.itemsize]
    return [data.view(torch.int32), whole // 4, data[codes:].view(torch.float32), whole // 4]
