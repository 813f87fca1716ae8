"""Embedding tables: split over the vocabulary, rows that lie elsewhere count as zeros."""

from __future__ import annotations

from collections.abc import Sequence

from ..model.loops import Loops, OperatorCollective, Site, declare, loops, shard_aware_name
from ..model.model import Op
from ..model.tensor import ITEM_BYTES
from .pattern import dim_names, literal, pattern

VOCABULARY = (("v",),)
LOOK_UP = "aten.embedding.default"
DENSE_GRADIENT = "aten.embedding_dense_backward.default"
SPARSE_GRADIENT = "aten.embedding_sparse_backward.default"


def asks_for_rows(op: Op) -> bool:
    """Whether an operator on shards asks other ranks for rows, which know those until backward."""
    return op.target == shard_aware_name(LOOK_UP) and bool(op.kwargs.get("over"))


def reads_rows(op: Op) -> bool:
    """Whether an operator looks rows of a table up."""
    return op.target == LOOK_UP


@declare(LOOK_UP, shard_aware=True)
def embedding(site: Site) -> Loops:
    """table, indices -> rows"""
    places = dim_names(site.operands[1].shape, "n")
    text = pattern([["v", "h"], places], [[*places, "h"]])
    # points are rows found, not rows times the table: nothing is computed at all
    return loops(
        text,
        site,
        linear=((0,),),
        work="move",
        flops=0,
        shard_offsets=((2, VOCABULARY),),
        pairs=_pairs(places),
        exchanges=_travel(places, site.operands[0].dtype),
        paired="rows",
    )


def _pairs(places: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """One axis may split the first dim of places and the rows: places travel to their rows and back."""
    return ((places[0], "v"),) if places and places[0] not in ("1", "n0!") else ()


def _travel(places: Sequence[str], dtype: str) -> tuple[OperatorCollective, ...]:
    """A place for every look-up, and a row, as if none were asked for twice; backward knows the places
    that forward asked for."""
    dims = tuple((name.rstrip("!"),) for name in places if name != "1")
    rows = OperatorCollective("all_to_all", (*dims, ("h",)), ITEM_BYTES[dtype])
    return OperatorCollective("all_to_all", dims, ITEM_BYTES["int64"]), rows


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
        pairs=() if scaled else _pairs(places),
        exchanges=() if scaled else _travel(places, site.operands[0].dtype)[1:],
        paired="rows",
    )
