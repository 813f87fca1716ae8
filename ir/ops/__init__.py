"""Declarations of operators by family; importing this package fills `plait.ir.model.loops.OPERATORS`."""

from . import (
    attention,
    convolution,
    embedding,
    experts,
    factory,
    indexing,
    loss,
    matrix,
    norm,
    pointwise,
    pooling,
    reduce,
    slicing,
    softmax,
    view,
)

__all__ = [
    "attention",
    "convolution",
    "embedding",
    "experts",
    "factory",
    "indexing",
    "loss",
    "matrix",
    "norm",
    "pointwise",
    "pooling",
    "reduce",
    "slicing",
    "softmax",
    "view",
]
