"""Values whose samples are checked: every shard checks its own."""

from __future__ import annotations

from ..model.loops import Loops, Site, declare, loops
from .pattern import dim_names, pattern


@declare("plait.checked.default")
def checked(site: Site) -> Loops:
    """x, holds, message -> x"""
    names = dim_names(site.operands[0].shape)
    return loops(pattern([names, names[:1]], [names]), site, work="move", flops=0)
