"""One rank's part in a pipeline: kernels between messages, written once for sockets and for tests.

`work` is a generator: it yields what has to travel and is sent what arrived. `Exchange` drives one over
process groups; `lockstep` drives those of many ranks in one process.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...ir.compression.kernel import Choose, Finish, Kernel, Pipeline, Transfer
from ...ir.errors import UsageError
from .codec import Codec, Launch, target_for
from .codes import fold
from .score import chosen, distances
from .select import place, taken


class Sum(NamedTuple):
    """Numbers to be added up over the level `all`."""


class Parcel(NamedTuple):
    """Messages (or numbers) of one rank that have to travel."""

    how: Transfer | Sum
    data: Tensor


class Occasion(NamedTuple):
    """Which step of training this is, on which rank, and what only the caller knows.

    `seed` is shared by all ranks, `rank` makes their roundings independent. `scores` are those of the
    ranks for a `zeno` rule.
    """

    step: int = 0
    seed: int = 0
    rank: int = 0
    scores: Tensor | None = None


Work = Generator[Parcel, Tensor, Tensor]


def work(
    pipeline: Pipeline, codec: Codec, bucket: Tensor, states: Mapping[str, Tensor],
    occasion: Occasion,
) -> Work:  # fmt: skip
    """Takes a flat padded fp32 bucket, updates `states` in place, gives a flat fp32 result."""
    select = pipeline.select
    value = bucket if select is None else taken(select, bucket, states, occasion)
    elements = pipeline.chunk(bucket.numel())
    number: Tensor | None = None
    for place_in_line, step in enumerate(pipeline.steps):
        if isinstance(step, Kernel):
            target = target_for(step, elements)
            seed = _seed(occasion, place_in_line)
            own = _own(step, elements, states, occasion.rank)
            codec.run(step, Launch(elements, value, target, own, number, seed, occasion.step))
            if step.partial:
                partials = target
            else:
                value = target
        elif isinstance(step, Transfer):
            value = yield Parcel(step, value)
        elif isinstance(step, Finish):
            count = pipeline.kernels[0].chunks * elements
            number = finished(step, partials, count)
        else:
            value = yield from _choose(step, value, occasion)
    if select is None:
        return value
    return place(select, value, bucket.numel(), occasion)


def _own(
    kernel: Kernel, elements: int, states: Mapping[str, Tensor], rank: int
) -> dict[str, Tensor]:
    """What a kernel sees of its states: of longer ones, such as a whole replica, this rank's part."""
    size = kernel.chunks * elements
    found = {operand.name: states[operand.name] for operand in kernel.operands}
    return {
        name: state if state.numel() == size else state[rank * size : (rank + 1) * size]
        for name, state in found.items()
    }


def finished(step: Finish, partials: Tensor, count: int) -> Tensor:
    """The statistic of `count` elements from those of their tiles."""
    if step.kind == "absmax":
        return partials.amax().view(1)
    size = 1 << (partials.numel() - 1).bit_length()
    total = fold(torch.nn.functional.pad(partials, (0, size - partials.numel())))
    mean = total / torch.tensor(float(count))
    return (mean if step.kind == "l1" else mean.sqrt()).view(1)


def _choose(step: Choose, value: Tensor, occasion: Occasion) -> Work:
    """Scores of whole vectors out of those of their chunks."""
    vectors = value.view(step.size, -1)
    if step.score.rule == "zeno":
        if occasion.scores is None:
            raise UsageError("zeno needs the ranks' scores: pass them with the bucket")
        return chosen(vectors, occasion.scores, step.size - step.score.drop)
    total = yield Parcel(Sum(), distances(vectors))
    nearest = total.sort(1).values[:, 1 : step.size - step.score.drop - 1]
    return chosen(vectors, -nearest.sum(1), 1)


def _seed(occasion: Occasion, kernel: int) -> int:
    """64 bits that differ by rank and kernel."""
    return (occasion.seed & 0xFFFFFFFF) | (occasion.rank * 64 + kernel & 0xFFFFFFFF) << 32
