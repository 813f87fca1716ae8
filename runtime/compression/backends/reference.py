"""The reference backend: a kernel stage by stage on whole tensors, in torch.

Slow; all other backends must give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....ir.compression.kernel import CompressionKernel
from ....ir.compression.message_format import SCALE_BYTES, MessageFormat
from ....ir.compression.stage import (
    AddRef,
    AddState,
    Cast,
    CompressionStage,
    Dequantize,
    Hadamard,
    MovingAverage,
    Pack,
    Quantize,
    Reduce,
    Residual,
    Scale,
    Stat,
    SubRef,
    Unpack,
)
from ..reduce import reduce
from .codec import Codec, Launch
from .codes import decode, encode, fold, pack, statistic, steps, unpack
from .philox import uniform

ELEMENTS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ReferenceCodec:
    """Runs kernels in torch."""

    name = "torch"

    @property
    def uncompressed(self) -> Codec:
        """The codec of exchanges without compression: this one."""
        return self

    def run(self, kernel: CompressionKernel, launch: Launch) -> None:
        _KernelRun(kernel, launch).finish()


class _KernelRun:
    """`x` is `[tiles, tile]`, before a reduction `[ranks * tiles, tile]`; rows go chunk by chunk."""

    def __init__(self, kernel: CompressionKernel, launch: Launch) -> None:
        self.kernel, self.launch = kernel, launch
        self.measured = torch.empty(0)  # `[tiles, groups]`
        self.scale = torch.empty(0)
        self.codes = torch.empty(0, dtype=torch.int64)
        self.exact = torch.empty(0)  # input of the quantisation
        self.x = self.read()
        for stage in kernel.body:
            DO[type(stage)](self, stage)

    def read(self) -> Tensor:
        kernel, launch = self.kernel, self.launch
        if kernel.source is None:
            chunks = launch.source.view(kernel.chunks, launch.elements)
            return chunks[self.order()].view(-1, kernel.tile)
        messages = launch.source.view(kernel.ranks * kernel.chunks, -1)
        size = kernel.source.codes_bytes(launch.elements)
        if kernel.source.plain:
            kind = ELEMENTS[kernel.source.codes]
            plain = messages[:, :size].contiguous().view(kind).to(torch.float32)
            return plain.view(-1, kernel.tile)
        scales = kernel.source.scales(launch.elements) * SCALE_BYTES
        self.scale = messages[:, size : size + scales].contiguous().view(torch.float32)
        return messages

    def order(self) -> Tensor:
        """The flat chunk that each result chunk comes from."""
        numbers = torch.arange(self.kernel.chunks, device=self.launch.source.device)
        if self.kernel.swizzle is None:
            return numbers
        inner, outer = self.kernel.swizzle
        return numbers % outer * inner + numbers // outer

    def state(self, name: str) -> Tensor:
        chunks = self.launch.states[name].view(self.kernel.chunks, self.launch.elements)
        return chunks[self.order()].to(torch.float32).view(-1, self.kernel.tile)

    def unpack(self, stage: Unpack) -> None:
        message_format = self.required(self.kernel.source)
        self.codes = unpack(
            message_format, self.x[:, : message_format.codes_bytes(self.launch.elements)]
        )

    def required(self, message_format: MessageFormat | None) -> MessageFormat:
        assert message_format is not None
        return message_format

    def dequantize(self, stage: Dequantize) -> None:
        message_format = self.required(self.kernel.source)
        values = decode(message_format, self.codes)
        self.x = _scaled(values, self.scale).view(-1, self.kernel.tile)

    def reduce(self, stage: Reduce) -> None:
        self.x = reduce(stage, self.x.view(self.kernel.ranks, -1, self.kernel.tile))

    def cast(self, stage: Cast) -> None:
        self.x = _rounded(self.x, stage.element)

    def multiply(self, stage: Scale) -> None:
        self.x = self.x * stage.factor

    def add_state(self, stage: AddState) -> None:
        self.x = self.x + self.state(stage.state)

    def moving_average(self, stage: MovingAverage) -> None:
        self.x = self.state(stage.state) * stage.decay + self.x * (1 - stage.decay)

    def sub_ref(self, stage: SubRef) -> None:
        x = _rounded(self.x, stage.element) - self.state(stage.state)
        self.x = _rounded(x, stage.element)

    def add_ref(self, stage: AddRef) -> None:
        x = _rounded(self.x, stage.element) + self.state(stage.state)
        self.x = _rounded(x, stage.element)

    def hadamard(self, stage: Hadamard) -> None:
        self.x = hadamard(self.x, stage.block)

    def stat(self, stage: Stat) -> None:
        if self.kernel.partial and stage == self.kernel.per_tensor_stat:
            values = {"absmax": self.x.abs(), "l1": self.x.abs(), "l2": self.x * self.x}[stage.kind]
            self.x = values.amax(-1) if stage.kind == "absmax" else fold(values)
        elif stage == self.kernel.per_tensor_stat:
            assert self.launch.number is not None
            self.measured = self.launch.number.view(1, 1).repeat(self.x.shape[0], 1)
        else:
            self.measured = statistic(stage, self.x)

    def quantize(self, stage: Quantize) -> None:
        message_format = self.required(self.kernel.target)
        self.exact = self.x
        self.scale, inverse = steps(message_format, self.measured)
        noise = None
        if stage.rounding == "stochastic":
            launch = self.launch
            noise = uniform(
                launch.seed, self.x.shape[0], self.kernel.tile, launch.step, self.x.device
            )
        self.codes = encode(stage, message_format, _scaled(self.x, inverse), noise)

    def pack(self, stage: Pack) -> None:
        message_format, launch = self.required(self.kernel.target), self.launch
        messages = launch.target.view(self.kernel.chunks, -1)
        size = message_format.codes_bytes(launch.elements)
        messages[:, :size] = pack(message_format, self.codes.view(self.kernel.chunks, -1))
        count = message_format.scales(launch.elements)
        scales = self.scale.reshape(self.kernel.chunks, -1)[:, :count].contiguous()
        messages[:, size : size + count * SCALE_BYTES] = scales.view(torch.uint8)

    def residual(self, stage: Residual) -> None:
        message_format = self.required(self.kernel.target)
        error = self.exact - _scaled(decode(message_format, self.codes), self.scale)
        state = self.launch.states[stage.state].view(self.kernel.chunks, -1)
        state[self.order()] = error.view(self.kernel.chunks, -1)

    def finish(self) -> None:
        target, out = self.kernel.target, self.launch.target
        if target is not None and not target.plain:
            return  # packed already
        flat = self.x.reshape(-1)
        if target is not None:
            flat = flat.to(ELEMENTS[target.codes]).view(torch.uint8)
        out.copy_(flat.view_as(out))


def hadamard(x: Tensor, block: int) -> Tensor:
    """Butterflies from neighbours outwards over every `block` elements."""
    width = 1
    while width < block:
        pairs = x.view(-1, 2, width)
        first, second = pairs[:, 0], pairs[:, 1]
        x = torch.stack((first + second, first - second), 1).view_as(x)
        width *= 2
    return x


def _scaled(values: Tensor, scale: Tensor) -> Tensor:
    """Each row's groups times the row's scales (`[rows, groups]`)."""
    groups = values.view(scale.shape[0], scale.shape[1], -1)
    return (groups * scale.unsqueeze(-1)).view_as(values)


def _rounded(x: Tensor, element: str) -> Tensor:
    return x.to(ELEMENTS[element]).to(torch.float32)


# fmt: off
DO: dict[type[CompressionStage], Callable[..., None]] = {
    Unpack: _KernelRun.unpack, Dequantize: _KernelRun.dequantize, Reduce: _KernelRun.reduce,
    Cast: _KernelRun.cast, Scale: _KernelRun.multiply, AddState: _KernelRun.add_state,
    MovingAverage: _KernelRun.moving_average, SubRef: _KernelRun.sub_ref, AddRef: _KernelRun.add_ref,
    Hadamard: _KernelRun.hadamard, Stat: _KernelRun.stat, Quantize: _KernelRun.quantize,
    Pack: _KernelRun.pack, Residual: _KernelRun.residual,
}
# fmt: on
