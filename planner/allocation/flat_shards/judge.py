"""Whether a flat layout is sound, cut by cut; it shares no code with the search."""

from __future__ import annotations

from collections.abc import Sequence

from .problem import FlatLayout, FlatTensor


def check(tensors: Sequence[FlatTensor], layout: FlatLayout) -> None:
    """Raises ValueError where tensors overlap, leave the buffer, or a cut goes through a block."""
    end = 0
    for tensor, at in sorted(zip(tensors, layout.offsets, strict=True), key=lambda pair: pair[1]):
        if at < end:
            raise ValueError(f"{tensor.name} at {at} overlaps what ends at {end}")
        end = at + tensor.elements
        for cut in range(layout.shard_elements, end, layout.shard_elements):
            if at < cut and (cut - at) % tensor.block:
                raise ValueError(f"the cut at {cut} goes through a block of {tensor.name} at {at}")
    if end > layout.ranks * layout.shard_elements:
        raise ValueError(f"tensors end at {end}, the buffer has {layout.ranks} shards")
