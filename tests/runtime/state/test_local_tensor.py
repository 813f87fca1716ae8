"""The boxes of all ranks' shards cover a tensor exactly, with each rank's own values."""

import random
from math import prod

import torch

from plait.runtime.state.local_tensor import Slice, TensorBox, boxes, unsliced


def test_boxes_of_a_range_are_that_range() -> None:
    rng = random.Random(0)
    for _ in range(300):
        shape = tuple(rng.randint(1, 5) for _ in range(rng.randint(0, 4)))
        elements = prod(shape)
        first, last = sorted((rng.randint(0, elements), rng.randint(0, elements)))
        tensor, seen = torch.arange(elements).view(shape), list[int]()
        covered = list(boxes(shape, first, last))
        for offsets, sizes in covered:
            part = tensor
            for dim, (start, size) in enumerate(zip(offsets, sizes, strict=True)):
                part = part.narrow(dim, start, size)
            seen += part.reshape(-1).tolist()
        assert seen == list(range(first, last))
        assert len(covered) <= max(2 * len(shape) - 1, 1)


def test_slices_are_undone() -> None:
    """Rows are split in two inside blocks of six, and the columns of what is left in three."""
    full = torch.arange(12 * 6).view(12, 6)
    for row in range(2):
        for column in range(3):
            rows = full.view(2, 2, 3, 6)[:, row].reshape(6, 6)
            shard = rows[:, 2 * column : 2 * column + 2]
            slices = [Slice(0, 6, 3, row), Slice(1, 6, 2, column)]
            chunks = unsliced(TensorBox((0, 0), shard), slices)
            assert len(chunks) == 2
            for offsets, values in chunks:
                there = full[offsets[0] : offsets[0] + 3, offsets[1] : offsets[1] + 2]
                assert torch.equal(values, there)
