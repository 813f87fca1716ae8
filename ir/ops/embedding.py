"""Embedding tables: split over the vocabulary, rows that lie elsewhere count as zeros."""

from __future__ import annotations

from ..model.loops import Loops, Site, declare, loops
from ..model.model import Op
from .pattern import dim_names, literal, pattern

VOCABULARY = (("v",),)
LOOK_UP = "aten.embedding.default"
DENSE_GRADIENT = "aten.embedding_dense_backward.default"
SPARSE_GRADIENT = "aten.embedding_sparse_backward.default"


def reads_rows(op: Op) -> bool:
    """Whether an operator looks rows of a table up."""
    return op.target == LOOK_UP


@declare(LOOK_UP, shard_aware=True)
def embedding(site: Site) -> Loops:
    """table, indices -> rows"""
    places = dim_names(site.operands[1].shape, "n")
    text = pattern([["v", "h"], places], [[*places, "h"]])
    # points are rows found, not rows times the table: nothing is computed at all
    return loops(text, site, linear=((0,),), work="move", flops=0, shard_offsets=((2, VOCABULARY),))


@declare(DENSE_GRADIENT, SPARSE_GRADIENT, shard_aware=True)
def embedding_backward(site: Site) -> Loops:
    """gradient, indices, rows of the table -> of the table: the places add up

    The sparse one gives the same as the rows that were read, one per place that read it.
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
