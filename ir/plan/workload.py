"""What parts of a plan ask of a device, before prices: work done, bytes sent, bytes held.

A plan carries its amounts, so that every price in it can be explained, and found again for another
cluster, without the model.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..loops import Work
from .strategy import Strategy


class Kernels(msgspec.Struct, frozen=True):
    """`count` equal operators: floating-point operations and bytes touched of each. `kind`: the
    operator, where the device was measured at it."""

    work: Work
    dtype: str
    flops: float
    moved_bytes: float
    count: int
    kind: str = ""


class Sent(msgspec.Struct, frozen=True):
    """`count` equal collectives over an axis of `size` ranks, `stride` ranks apart. `item`: bytes of an
    element of what may travel rounded, 0 for what may not."""

    kind: str
    axis: str
    amount_bytes: float
    size: int
    stride: int
    count: int
    item: int = 0


class Piece(msgspec.Struct, frozen=True):
    """The forward or the backward of one call on one device for one micro-batch. `host_bytes` go to,
    or come from, host memory meanwhile."""

    kernels: tuple[Kernels, ...] = ()
    sent: tuple[Sent, ...] = ()
    host_bytes: int = 0


class Large(msgspec.Struct, frozen=True):
    """Of what crosses from one stage to the next, the values that are large enough to travel
    compressed."""

    bytes: int = 0
    elements: int = 0


Phase = Literal["forward", "backward", "accumulate"]


class Moment(msgspec.Struct, frozen=True):
    """What one call of a stage finds and holds while it runs, of the micro-batch at hand.

    `waiting` bytes are between calls or wait for backward, `inside` ones are the call's own at its
    worst. `summed` bytes of weights have had all their gradients, it holds `weights` bytes itself, of
    which `biggest` in one tensor. To `accumulate` is to add its gradients to those at hand.
    """

    phase: Phase
    waiting: int
    inside: int
    summed: int
    weights: int
    biggest: int


class StageBytes(msgspec.Struct, frozen=True):
    """Bytes of one stage on one device: weights `held`, and of them `trained`.

    `calls` counts calls by the bytes of weights they hold. `saved` waits for backward, per
    micro-batch; of it `last`, after the loss, becomes gradients at once. `moments` are those among
    which the worst is. `once` belongs to calls that run once per step; of what comes from the batch
    alone a micro-batch has copies, `batch`, of which `inputs` are its part of the batch. `crossing` goes
    to the next stage, `entering` comes from the one before; where it is compressed, messages of
    `message` bytes travel instead, with `coding` bytes of copies while one is made or read. `item`:
    bytes of a parameter's element; `summed`: of `trained`, what is whole along an axis; `small`: of it,
    what lies in tensors that are not compressed. `host` waits in host memory, per micro-batch.
    """

    held: int
    trained: int
    calls: tuple[tuple[int, int], ...]
    saved: int
    last: int
    moments: tuple[Moment, ...]
    once: int
    batch: int
    inputs: int
    crossing: int
    entering: int
    item: int
    summed: dict[str, int]
    small: int = 0
    host: int = 0
    message: int = 0
    coding: int = 0

    @property
    def biggest_call(self) -> int:
        return max((amount for amount, _ in self.calls), default=0)

    @property
    def biggest(self) -> int:
        """Bytes of the biggest tensor of weights."""
        return max((moment.biggest for moment in self.moments), default=0)


class Share(msgspec.Struct, frozen=True):
    """The calls of one strategy in one stage."""

    strategy: Strategy
    bytes: StageBytes
