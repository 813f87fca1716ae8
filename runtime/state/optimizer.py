"""Creates a program's optimizer: any torch optimizer on shards, or a compressed one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from zlib import crc32

import torch

from ...ir.compression.registry import algorithm
from ...ir.errors import UsageError
from ...ir.layout import REPLICATE
from ...ir.program import CompressedAxis
from ..compression.backends.codec import Codec
from ..compression.optimizers.flat import FlatOptimizer
from ..compression.optimizers.registry import OPTIMIZERS
from ..compression.work import GroupHierarchy
from .parameters import LocalParameter, ParameterStore

Factory = Callable[..., torch.optim.Optimizer]

# Each needs a whole matrix (its rows, norm or spectrum), which a shard is not.
NOT_ELEMENTWISE = {
    "Adafactor": "factors the second moment of a matrix into its row and column means",
    "Muon": "orthogonalises whole matrices",
    "Shampoo": "preconditions whole matrices",
    "SOAP": "preconditions whole matrices",
    "LAMB": "scales by the norm of the whole tensor",
    "LARS": "scales by the norm of the whole tensor",
}


def make(
    factory: Factory, args: Mapping[str, Any], parameters: list[LocalParameter]
) -> torch.optim.Optimizer | None:
    """The optimizer over this rank's shards, or None where nothing is trainable.

    Raises UsageError for an optimizer that needs whole tensors when parameters are sharded.
    """
    leaves = [p.leaf for p in parameters if p.leaf is not None]
    if not leaves:
        return None
    check_elementwise(factory, parameters)
    optimizer = factory(leaves, **args)
    check_elementwise(type(optimizer), parameters)
    return optimizer


def make_compressed(
    axis: CompressedAxis,
    args: Mapping[str, Any],
    store: ParameterStore,
    hierarchy: GroupHierarchy,
    codec: Codec,
) -> FlatOptimizer | None:
    """The optimizer that exchanges compressed gradients along an axis itself; None where nothing is
    trainable. Its gradients are partial sums over that axis.

    Parameters that are replicated over the same other axes form a group: flattened together with
    different neighbours on different ranks, they would be rounded differently.
    """
    by_replication: dict[str, list[torch.nn.Parameter]] = {}
    for parameter in store.trainable():
        if parameter.leaf is not None:
            shared = parameter.spec.stages if len(parameter.spec.stages) > 1 else ()
            sharded_axes = [
                number for number, state in enumerate(parameter.spec.layout) if state != REPLICATE
            ]
            by_replication.setdefault(f"axes {sharded_axes} stages {shared}", []).append(
                parameter.leaf
            )
    if not by_replication:
        return None
    chosen = algorithm(axis.optimizer)
    groups = [
        {"params": members, "seed": crc32(key.encode())} for key, members in by_replication.items()
    ]
    optimizer: FlatOptimizer = OPTIMIZERS[chosen.optimizer](
        groups, hierarchy, program=chosen, codec=codec, **args
    )
    optimizer.scale = hierarchy.all.size
    return optimizer


def check_elementwise(factory: Factory, parameters: list[LocalParameter]) -> None:
    """Raise UsageError for LBFGS, and for optimizers that need whole tensors where some are sharded."""
    while isinstance(factory, partial):
        factory = factory.func
    names = {getattr(cls, "__name__", "") for cls in getattr(factory, "__mro__", (factory,))}
    if "LBFGS" in names:
        raise UsageError(
            "LBFGS evaluates the loss several times per step, which a compiled program does not "
            "do: use an optimizer whose step takes no closure"
        )
    sharded = [p for p in parameters if p.total_degree > 1 or any(s != "R" for s in p.spec.layout)]
    for name in names & NOT_ELEMENTWISE.keys():
        if sharded:
            raise UsageError(
                f"{name} {NOT_ELEMENTWISE[name]}, but {len(sharded)} of {len(parameters)} parameters "
                f"are sharded here ({sharded[0].name} first): use an element-wise optimizer such as "
                f"AdamW, or a plan of dp and pp only"
            )
