"""Any torch optimizer on this rank's pieces, or one that talks to other ranks itself."""

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
from ..compression.work import Levels
from .parameters import Kept, Store

Factory = Callable[..., torch.optim.Optimizer]

# Each looks at a whole matrix (its rows, its norm, its spectrum), which a piece does not have.
NOT_ELEMENTWISE = {
    "Adafactor": "factors the second moment of a matrix into its row and column means",
    "Muon": "orthogonalises whole matrices",
    "Shampoo": "preconditions whole matrices",
    "SOAP": "preconditions whole matrices",
    "LAMB": "scales by the norm of the whole tensor",
    "LARS": "scales by the norm of the whole tensor",
}


def make(
    factory: Factory, args: Mapping[str, Any], kept: list[Kept]
) -> torch.optim.Optimizer | None:
    """The optimizer over this rank's pieces, or None where nothing is trained.

    Raises UsageError for an optimizer that cannot work on pieces when there are pieces.
    """
    leaves = [k.leaf for k in kept if k.leaf is not None]
    if not leaves:
        return None
    refuse(factory, kept)
    made = factory(leaves, **args)
    refuse(type(made), kept)
    return made


def lead(
    axis: CompressedAxis, args: Mapping[str, Any], store: Store, levels: Levels, codec: Codec
) -> FlatOptimizer | None:
    """The optimizer that talks to other ranks itself along an axis; None where nothing is trained.
    It is given parts of the sums that gradients are.

    What has one value on several ranks beside that axis is a group: in company that differs between
    them it would be rounded in different ways.
    """
    alike: dict[str, list[torch.nn.Parameter]] = {}
    for kept in store.trained():
        if kept.leaf is not None:
            shared = kept.held.stages if len(kept.held.stages) > 1 else ()
            cut = [number for number, state in enumerate(kept.held.layout) if state != REPLICATE]
            alike.setdefault(f"axes {cut} stages {shared}", []).append(kept.leaf)
    if not alike:
        return None
    known = algorithm(axis.optimizer)
    groups = [{"params": own, "seed": crc32(key.encode())} for key, own in alike.items()]
    made: FlatOptimizer = OPTIMIZERS[known.optimizer](
        groups, levels, program=known, codec=codec, **args
    )
    made.scale = levels.all.size
    return made


def refuse(factory: Factory, kept: list[Kept]) -> None:
    while isinstance(factory, partial):
        factory = factory.func
    names = {getattr(cls, "__name__", "") for cls in getattr(factory, "__mro__", (factory,))}
    if "LBFGS" in names:
        raise UsageError(
            "LBFGS evaluates the loss several times per step, which a compiled program does not "
            "do: use an optimizer whose step takes no closure"
        )
    cut = [k for k in kept if k.total_ways > 1 or any(s != "R" for s in k.held.layout)]
    for name in names & NOT_ELEMENTWISE.keys():
        if cut:
            raise UsageError(
                f"{name} {NOT_ELEMENTWISE[name]}, but {len(cut)} of {len(kept)} parameters are "
                f"sharded here ({cut[0].name} first): use an element-wise optimizer such as "
                f"AdamW, or a plan of dp and pp only"
            )
