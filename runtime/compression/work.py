"""One rank's part in a pipeline: kernels, and messages over groups between them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...ir.compression.kernel import Choose, Finish, Kernel, Pipeline, Transfer
from ...ir.errors import UsageError
from .backends.codec import Codec, Launch, target_for
from .backends.codes import fold, root
from .score import chosen, distances
from .select import place, taken

Work = Generator[Callable[[], Tensor], Tensor, Tensor]  # yields communication, gets its result


class Ranks(Protocol):
    """What is asked of a `runtime.group.Group`."""

    @property
    def size(self) -> int: ...
    @property
    def index(self) -> int: ...
    def all_reduce(self, x: Tensor) -> Tensor: ...
    def all_gather(self, x: Tensor) -> Tensor: ...
    def all_to_all(self, x: Tensor) -> Tensor: ...


class Levels(NamedTuple):
    """Groups of one rank: of all, inside its node, and of its peers in all nodes.

    Rank `outer.index * inner.size + inner.index` of `all` is this one.
    """

    all: Ranks
    inner: Ranks
    outer: Ranks


class Occasion(NamedTuple):
    """Which step of training this is, and what only the caller knows.

    `seed` is shared by all ranks. `scores` are those of the ranks for a `zeno` rule.
    """

    step: int = 0
    seed: int = 0
    scores: Tensor | None = None


def steps(
    pipeline: Pipeline,
    codec: Codec,
    levels: Levels,
    bucket: Tensor,
    states: Mapping[str, Tensor],
    occasion: Occasion,
    out: Tensor | None = None,
) -> Work:
    """Takes a flat padded fp32 bucket, updates `states` in place, gives a flat fp32 result. What has
    to do with other ranks is yielded, to be called by whoever drives these steps.

    The result is written to `out` (flat, fp32, of its size), which may be the bucket or a replica.
    """
    select = pipeline.select
    value = bucket if select is None else taken(select, bucket, states, occasion)
    elements, rank = pipeline.chunk(bucket.numel()), levels.all.index
    number: Tensor | None = None
    count = pipeline.chunks * elements
    for line, step in enumerate(pipeline.steps):
        if isinstance(step, Kernel):
            last = out is not None and step is pipeline.steps[-1] and select is None
            target = out if last else target_for(step, elements, value.device)
            assert target is not None
            own = _own(step, elements, states, rank)
            seed = _seed(occasion, rank, line)
            codec.run(step, Launch(elements, value, target, own, number, seed, occasion.step))
            partials, value = (target, value) if step.partial else (value, target)
            count = step.chunks * elements
        elif isinstance(step, Transfer):
            value = yield partial(transferred, step, levels, value)
        elif isinstance(step, Finish):
            number = finished(step, partials, count)
        else:
            value = yield partial(_choose, step, levels, value, occasion)
    return value if select is None else place(select, value, bucket.numel(), occasion)


def transferred(step: Transfer, levels: Levels, messages: Tensor) -> Tensor:
    """What arrives for what this rank sends."""
    group: Ranks = getattr(levels, step.level)
    if step.kind == "all_gather":
        return group.all_gather(messages).view(-1)
    if step.kind == "all_to_all":
        return group.all_to_all(messages.view(step.size, -1)).view(-1)
    raise UsageError("messages to one rank travel by its owner: use encode and decode")


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
    return (mean if step.kind == "l1" else root(mean)).view(1)


def _choose(step: Choose, levels: Levels, value: Tensor, occasion: Occasion) -> Tensor:
    """Scores of whole vectors out of those of their chunks."""
    vectors = value.view(step.size, -1)
    if step.score.rule == "zeno":
        if occasion.scores is None:
            raise UsageError("zeno needs the ranks' scores: pass them with the bucket")
        return chosen(vectors, occasion.scores, step.size - step.score.drop)
    total = levels.all.all_reduce(distances(vectors))
    nearest = total.sort(1).values[:, 1 : step.size - step.score.drop - 1]
    return chosen(vectors, -nearest.sum(1), 1)


def _seed(occasion: Occasion, rank: int, kernel: int) -> int:
    """64 bits that differ by rank and kernel, so that roundings are independent."""
    return (occasion.seed & 0xFFFFFFFF) | (rank * 64 + kernel & 0xFFFFFFFF) << 32
