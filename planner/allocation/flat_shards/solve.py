"""Find the smallest shard: candidate sizes in ascending order, each filled in several orders.

A tensor longer than two shards crosses two shard boundaries wherever it is, so its block must
divide the shard. That bounds the shard from below and leaves few sizes to try. With few tensors all
orders are tried, and the result is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations, islice
from math import lcm, prod

import numpy as np

from .fill import fill, least_end
from .kinds import TensorKinds
from .problem import FlatLayout, FlatTensor

EXACT_STATES = 5_000  # subsets of tensors up to which filling tries all orders
EXACT_SIZES = 5_000  # sizes tried one by one, where it does
SIZES = 48  # and where it does not
SUBSETS = 64  # sets of blocks whose common multiples are tried besides
MULTIPLES = 16  # of each
PATIENCE = (0.0, 1.0, 4.0, 1e3)  # in shares of the padding that there is per tensor

Filling = tuple[list[int], list[int]]  # kinds in their order, and where each starts


def flatten(tensors: Sequence[FlatTensor], ranks: int) -> FlatLayout:
    """Order and offsets of tensors with small shards whose boundaries split no block.

    Raises ValueError without a rank or an element. The problem is that of veScale-FSDP (2026),
    which keeps the model's order; here the order is free and the shard comes with a lower bound.
    """
    if ranks < 1 or not any(t.elements for t in tensors):
        raise ValueError("a flat buffer needs a rank and an element")
    kinds = TensorKinds.of(tensors)
    exact = prod(int(count) + 1 for count in kinds.counts) <= EXACT_STATES
    attempt = every_order if exact else some_orders
    bound, refuted = 0, True  # all sizes so far were possible ones, and none could be filled
    for shard, consecutive in sizes_to_try(kinds, ranks, EXACT_SIZES if exact else SIZES):
        refuted = refuted and consecutive and (exact or not bound)
        bound = shard if refuted else bound
        filling = attempt(kinds, shard, ranks)
        if filling is not None:
            return FlatLayout(ranks, shard, bound, kinds.offsets(tensors, *filling))
    raise AssertionError("a shard that holds all tensors was not tried")


def possible_sizes(kinds: TensorKinds, ranks: int) -> Iterator[int]:
    """Shard sizes (elements) that the long tensors allow, in ascending order."""
    least = max(-(-kinds.total // ranks), int(kinds.block.max()))
    while True:
        long = kinds.elements > 2 * least
        step = lcm(*kinds.block[long].tolist())
        shard = -(-least // step) * step
        shorter = min((-(-int(e) // 2) for e in kinds.elements[long]), default=shard)
        if shard > shorter:  # by then, fewer tensors are long
            least = shorter
        else:
            yield shard
            least = shard + 1


def is_possible(kinds: TensorKinds, shard: int) -> bool:
    return not (shard % kinds.block[kinds.elements > 2 * shard]).any()


def sizes_to_try(kinds: TensorKinds, ranks: int, most: int) -> Iterator[tuple[int, bool]]:
    """Shard sizes to try, each with whether all smaller possible sizes have been tried before."""
    first = list(islice(possible_sizes(kinds, ranks), most))
    yield from ((shard, True) for shard in first)
    blocks = sorted(set(kinds.block.tolist()), reverse=True)
    sets = chain.from_iterable(combinations(blocks, n) for n in range(len(blocks), 0, -1))
    steps = {lcm(*chosen) for chosen in islice(sets, SUBSETS)}
    low = first[0]
    further = {(low // step + k) * step for step in steps for k in range(1, MULTIPLES + 1)}
    further |= {low + (low << k >> 10) for k in range(10 + ranks.bit_length())}
    further = {s for s in further if s > low and is_possible(kinds, s)} - set(first)
    further.add(max(kinds.total, low))
    yield from ((shard, False) for shard in sorted(further))


def some_orders(kinds: TensorKinds, shard: int, ranks: int) -> Filling | None:
    """A filling from several greedy orders; None if none of them fits."""
    count = int(kinds.counts.sum())
    spare = (shard * ranks - kinds.total) / count
    for rule in range(3):
        for patience in PATIENCE:
            placed, order, starts = fill(
                kinds.elements, kinds.block, kinds.counts, shard, ranks, rule, int(patience * spare)
            )
            if placed == count:
                return order.tolist(), starts.tolist()
    return None


def every_order(kinds: TensorKinds, shard: int, ranks: int) -> Filling | None:
    """A filling from the exact search over orders; None if there is none."""
    end, last = least_end(kinds.elements, kinds.block, kinds.counts, shard, ranks)
    if last[-1] < 0:
        return None
    units = np.cumprod(np.concatenate([[1], kinds.counts[:-1] + 1]))
    state, order, starts = len(end) - 1, list[int](), list[int]()
    while state:
        kind = int(last[state])
        order.append(kind)
        starts.append(int(end[state] - kinds.elements[kind]))
        state -= int(units[kind])
    return order, starts
