"""Compressed messages to one other rank: the next stage of the pipeline."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ir.compression.kernel import CompressionKernel
from ...ir.compression.lower import lower
from ...ir.compression.program import CompressionProgram
from ...ir.errors import UsageError
from .backends.codec import Codec, Launch, target_for
from .backends.reference import ReferenceCodec
from .exchange import pad


class Message:
    """Encodes tensors of `elements` as one uint8 tensor of `sent_bytes`, and decodes those."""

    def __init__(
        self, program: CompressionProgram, elements: int, codec: Codec | None = None
    ) -> None:
        if program.collective != "send":
            raise UsageError(f"{program.name} is a program for {program.collective}, not for send")
        self.pipeline, self.elements = lower(program), elements
        self.codec: Codec = codec or ReferenceCodec()
        self.first, self.last = self.pipeline.kernels
        self.sent_bytes = self.pipeline.sent_bytes(elements)

    def encode(self, x: Tensor) -> Tensor:
        """`[sent_bytes]` of any `x` with `elements` elements."""
        flat = x.reshape(-1).to(torch.float32)
        return self._run(self.first, pad(flat, (0, self._chunk - self.elements)))

    def decode(self, message: Tensor) -> Tensor:
        """`[elements]` in fp32."""
        return self._run(self.last, message)[: self.elements]

    @property
    def _chunk(self) -> int:
        return self.pipeline.chunk(self.elements)

    def _run(self, kernel: CompressionKernel, source: Tensor) -> Tensor:
        target = target_for(kernel, self._chunk, source.device)
        self.codec.run(kernel, Launch(self._chunk, source.contiguous(), target, {}))
        return target
