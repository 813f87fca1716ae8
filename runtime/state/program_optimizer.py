"""The optimizer of a program: the user's, or the compressed one that its plan names."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ...ir.errors import UsageError
from ...ir.plan.program import CompressedAxis
from ..comm.program_groups import MeshGroups
from ..compression.backends.codec import Codec
from .initialization import InitialValues
from .optimizer import LocalOptimizer, OptimizerRequest, make, make_compressed
from .parameters import ParameterStore


class ProgramOptimizer(NamedTuple):
    """What users see as the optimizer, and what steps for it on this rank; None where a compressed
    optimizer steps itself, or nothing is trainable."""

    optimizer: torch.optim.Optimizer | None
    updates: LocalOptimizer | None


def program_optimizer(
    request: OptimizerRequest,
    initial: InitialValues,
    store: ParameterStore,
    groups: MeshGroups,
    make_codec: Callable[[CompressedAxis], Codec],
) -> ProgramOptimizer:
    """Create the optimizer on what this rank has.

    Raises UsageError where the plan names one and the user gives another.
    """
    axis = next((axis for axis in store.table.compression if axis.optimizer), None)
    if axis is None:
        updates = make(request, initial, store, groups)
        return ProgramOptimizer(None if updates is None else updates.optimizer, updates)
    if request.factory is not None or request.param_groups is not None:
        raise UsageError(
            f"the plan leaves sums of gradients to {axis.optimizer}: leave the optimizer and its "
            f"groups out, and give its arguments, or plan with another --optimizer"
        )
    levels = groups.hierarchies[axis.mesh, axis.role]
    compressed = make_compressed(axis, request.args, store, levels, make_codec(axis))
    store.compressed_optimizer = compressed
    return ProgramOptimizer(compressed, None)
