"""Compression of activations and their gradients: sent to the next stage, or summed over ranks.

Large floating-point values are compressed, all others sent as they are; shape and dtype decide, so
both ends agree. There is no error feedback: every value stands for itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...ir.compression.program import CompressionProgram
from ...ir.model.tensor import TensorType
from ...ir.plan.program import compressible
from ..comm.group_hierarchy import GroupHierarchy
from .backends.codec import Codec
from .exchange import BucketOptions, CompressedCollective
from .message import Message


def type_of(x: Tensor) -> TensorType:
    return TensorType(tuple(x.shape), str(x.dtype).removeprefix("torch."))


class StageTransferCodec:
    """Codec of values sent between stages; without a `program` nothing is compressed."""

    def __init__(
        self, program: CompressionProgram | None = None, codec: Codec | None = None
    ) -> None:
        self.program, self.codec = program, codec
        self.messages: dict[int, Message] = {}

    def message(self, kind: TensorType) -> Message | None:
        """The message that encodes a value, None for a value sent as it is."""
        if self.program is None or not compressible(kind):
            return None
        if kind.elements not in self.messages:
            self.messages[kind.elements] = Message(self.program, kind.elements, self.codec)
        return self.messages[kind.elements]

    def encode(self, value: Tensor) -> Tensor:
        """The tensor to send for a value."""
        message = self.message(type_of(value))
        return value if message is None else message.encode(value)

    def empty(self, kind: TensorType, device: torch.device) -> Tensor:
        """An empty tensor to receive a value's message into."""
        message = self.message(kind)
        if message is None:
            return torch.empty(kind.shape, dtype=getattr(torch, kind.dtype), device=device)
        return torch.empty(message.sent_bytes, dtype=torch.uint8, device=device)

    def decode(self, received: Tensor, kind: TensorType) -> Tensor:
        """The value of a received message."""
        message = self.message(kind)
        if message is None:
            return received
        return message.decode(received).view(kind.shape).to(getattr(torch, kind.dtype))


class CompressedAllReduce:
    """Compressed sums over the ranks of an axis, with the same bits on all of them."""

    def __init__(self, program: CompressionProgram, levels: GroupHierarchy, codec: Codec) -> None:
        self.program, self.levels, self.codec = program, levels, codec
        self.exchanges: dict[int, CompressedCollective] = {}

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's `x`, in a new tensor."""
        if not compressible(type_of(x)):
            return self.levels.all.all_reduce(x)
        count = x.numel()
        if count not in self.exchanges:
            self.exchanges[count] = CompressedCollective(
                self.program, self.levels, count, BucketOptions(small_bytes=0), self.codec
            )
        return self.exchanges[count].all_reduce(x.reshape(-1)).view(x.shape).to(x.dtype)
