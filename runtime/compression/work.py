"""Steps of one rank in a kernel pipeline: kernels, and messages over groups between them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...ir.compression.kernel import (
    CompressionKernel,
    FinishStatistic,
    KernelPipeline,
    MessageTransfer,
    ScoreVectors,
)
from ...ir.errors import UsageError
from ..comm.group_hierarchy import GroupHierarchy, RankGroup
from .backends.codec import Codec, Launch, target_for
from .backends.codes import fold, root
from .score import distances, mean_of_best
from .select import scatter_selected, select_elements

ExchangeSteps = Generator[
    Callable[[], Tensor], Tensor, Tensor
]  # yields communication, gets its result


class StepContext(NamedTuple):
    """The training step, and arguments that only the caller knows.

    `seed` is shared by all ranks. `scores` are those of the ranks for a `zeno` rule.
    """

    step: int = 0
    seed: int = 0
    scores: Tensor | None = None


def steps(
    pipeline: KernelPipeline,
    codec: Codec,
    levels: GroupHierarchy,
    bucket: Tensor,
    states: Mapping[str, Tensor],
    context: StepContext,
    out: Tensor | None = None,
) -> ExchangeSteps:
    """Run a pipeline on a flat padded fp32 bucket; gives a flat fp32 result, updates `states` in place.
    Communication is yielded as calls, to be made by the driver of these steps.

    The result is written to `out` (flat, fp32, of its size), which may be the bucket or a replica.
    """
    select = pipeline.select
    value = bucket if select is None else select_elements(select, bucket, states, context)
    elements, rank = pipeline.chunk(bucket.numel()), levels.all.index
    number: Tensor | None = None
    partials = value
    count = pipeline.chunks * elements
    for number_of_kernel, step in enumerate(pipeline.steps):
        if isinstance(step, CompressionKernel):
            last = out is not None and step is pipeline.steps[-1] and select is None
            target = out if last else target_for(step, elements, value.device)
            assert target is not None
            local = _local_states(step, elements, states, rank)
            seed = _seed(context, rank, number_of_kernel)
            codec.run(step, Launch(elements, value, target, local, number, seed, context.step))
            partials, value = (target, value) if step.partial else (value, target)
            count = step.chunks * elements
        elif isinstance(step, MessageTransfer):
            value = yield partial(transfer, step, levels, value)
        elif isinstance(step, FinishStatistic):
            number = finish_statistic(step, partials, count)
        else:
            value = yield partial(_choose, step, levels, value, context)
    return value if select is None else scatter_selected(select, value, bucket.numel(), context)


def transfer(step: MessageTransfer, levels: GroupHierarchy, messages: Tensor) -> Tensor:
    """Send messages to the ranks of a level; gives those received."""
    group: RankGroup = getattr(levels, step.level)
    if step.kind == "all_gather":
        return group.all_gather(messages).view(-1)
    if step.kind == "all_to_all":
        return group.all_to_all(messages.view(step.size, -1)).view(-1)
    raise UsageError("messages to one rank travel by its owner: use encode and decode")


def _local_states(
    kernel: CompressionKernel, elements: int, states: Mapping[str, Tensor], rank: int
) -> dict[str, Tensor]:
    """States of a kernel by name; of longer ones, such as a full replica, this rank's slice."""
    size = kernel.chunks * elements
    selected = {operand.name: states[operand.name] for operand in kernel.operands}
    return {
        name: state if state.numel() == size else state[rank * size : (rank + 1) * size]
        for name, state in selected.items()
    }


def finish_statistic(step: FinishStatistic, partials: Tensor, count: int) -> Tensor:
    """The statistic of `count` elements from those of their tiles."""
    if step.kind == "absmax":
        return partials.amax().view(1)
    size = 1 << (partials.numel() - 1).bit_length()
    total = fold(torch.nn.functional.pad(partials, (0, size - partials.numel())))
    mean = total / torch.tensor(float(count))
    return (mean if step.kind == "l1" else root(mean)).view(1)


def _choose(
    step: ScoreVectors, levels: GroupHierarchy, value: Tensor, context: StepContext
) -> Tensor:
    """Scores of whole vectors from those of their chunks."""
    vectors = value.view(step.size, -1)
    if step.score.rule == "zeno":
        if context.scores is None:
            raise UsageError("zeno needs the ranks' scores: pass them with the bucket")
        return mean_of_best(vectors, context.scores, step.size - step.score.drop)
    total = levels.all.all_reduce(distances(vectors))
    nearest = total.sort(1).values[:, 1 : step.size - step.score.drop - 1]
    return mean_of_best(vectors, -nearest.sum(1), 1)


def _seed(context: StepContext, rank: int, kernel: int) -> int:
    """64 bits that differ by rank and kernel, so that roundings are independent."""
    return (context.seed & 0xFFFFFFFF) | (rank * 64 + kernel & 0xFFFFFFFF) << 32
