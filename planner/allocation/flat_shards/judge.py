"""Independent validity check of a flat layout; shares no code with the search."""

from __future__ import annotations

from collections.abc import Sequence

from .problem import FlatLayout, FlatTensor


def check(tensors: Sequence[FlatTensor], layout: FlatLayout) -> None:
    """Raises ValueError where tensors overlap, leave the buffer, or a shard boundary splits a
    block.
    """
    end = 0
    for tensor, at in sorted(zip(tensors, layout.offsets, strict=True), key=lambda pair: pair[1]):
        if at < end:
            raise ValueError(f"{tensor.name} at {at} overlaps what ends at {end}")
        end = at + tensor.elements
        for boundary in range(layout.shard_elements, end, layout.shard_elements):
            if at < boundary and (boundary - at) % tensor.block:
                raise ValueError(
                    f"the cut at {boundary} goes through a block of {tensor.name} at {at}"
                )
    if end > layout.ranks * layout.shard_elements:
        raise ValueError(f"tensors end at {end}, the buffer has {layout.ranks} shards")
