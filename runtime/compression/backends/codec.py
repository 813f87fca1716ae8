"""The interface of kernel backends, and the arguments of one kernel launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ....ir.compression.kernel import CompressionKernel


class Launch(NamedTuple):
    """Arguments of one kernel. All tensors are contiguous, on one device.

    `elements` per chunk, a multiple of the kernel's tile; `source` flat fp32 or messages (uint8);
    `states` flat, by name; `number` the finished statistic over everything (fp32, one element).
    """

    elements: int
    source: Tensor
    target: Tensor
    states: Mapping[str, Tensor]
    number: Tensor | None = None
    seed: int = 0
    step: int = 0


class Codec(Protocol):
    """A backend that runs compression kernels; `name` is what it is printed as."""

    name: str

    @property
    def uncompressed(self) -> Codec:
        """The codec of exchanges without compression: of early steps and small tensors."""
        ...

    def run(self, kernel: CompressionKernel, launch: Launch) -> None:
        """Fill `launch.target` and the states that the kernel writes."""


def target_for(
    kernel: CompressionKernel, elements: int, device: torch.device | None = None
) -> Tensor:
    """An empty tensor for the kernel's result; what messages leave unused at their end is zero."""
    message_format = kernel.target
    if message_format is not None:
        shape = kernel.chunks, message_format.bytes(elements)
        messages = torch.empty(shape, dtype=torch.uint8, device=device)
        messages[:, message_format.used_bytes(elements) :] = 0
        return messages.view(-1)
    per_chunk = elements // kernel.tile if kernel.partial else elements
    return torch.empty(kernel.chunks * per_chunk, device=device)
