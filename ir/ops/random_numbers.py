"""Random numbers: every shard draws those of its place in the whole tensor."""

from __future__ import annotations

from ..model.loops import Loops, Site, declare, loops
from .pattern import dim_names, dims, pattern


@declare("plait.uniform.default", shard_aware=True)
def uniform(site: Site) -> Loops | None:
    """key, stream, places, shape, element type -> numbers"""
    (result,) = site.results
    if result is None:
        return None
    full = dim_names(result.shape)
    where = dims(full)
    return loops(
        pattern([["key!"]], [full]),
        site,
        shapes=((3, where),),
        shard_offsets=((2, where),),
        flops=10,
    )
