"""Embedding tables: split over the vocabulary, rows that lie elsewhere count as zeros."""

from __future__ import annotations

from ..model.loops import Loops, Site, declare, loops
from .pattern import dim_names, literal, pattern

VOCABULARY = (("v",),)


@declare("aten.embedding.default", shard_aware=True)
def embedding(site: Site) -> Loops:
    """table, indices -> rows"""
    places = dim_names(site.operands[1].shape, "n")
    text = pattern([["v", "h"], places], [[*places, "h"]])
    # points are rows found, not rows times the table: nothing is computed at all
    return loops(text, site, linear=((0,),), work="move", flops=0, shard_offsets=((2, VOCABULARY),))


@declare("aten.embedding_dense_backward.default", shard_aware=True)
def embedding_backward(site: Site) -> Loops:
    """gradient, indices, rows of the table -> of the table: the places add up

    Scaling by how often a row is used needs all places together."""
    scaled = literal(site, 4) is True
    places = dim_names(site.operands[1].shape, "n", whole=range(9) if scaled else ())
    row = "v!" if scaled else "v"
    return loops(
        pattern([[*places, "h"], places], [[row, "h"]]),
        site,
        linear=((0,),),
        work="move",
        flops=0,
        shapes=((2, VOCABULARY),),
        shard_offsets=((5, VOCABULARY),),
    )
