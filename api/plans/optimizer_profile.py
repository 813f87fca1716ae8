"""What planning must know of an optimizer that is given as a class, factory or instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ...ir.analysis.row_gradients import sparse_gradients
from ...ir.compression.registry import COMPRESSED_OPTIMIZERS
from ...ir.errors import UsageError
from ...ir.model.model import Model
from ...ir.plan.plan import Optimizer
from ...planner.question.options import OPTIMIZERS
from ...planner.question.training import named_optimizer

if TYPE_CHECKING:
    from torch import nn

    from ...runtime.state.optimizer import ParameterGroups


def optimizer_profile(
    model: nn.Module | Model,
    optimizer: Any,
    arguments: Mapping[str, Any] | None,
    param_groups: ParameterGroups | None,
) -> str | Optimizer:
    """The name of a known optimizer, else its states and demand as a probe finds them.

    A name or a profile stays as it is, None is AdamW. Raises UsageError for groups that no
    optimizer gets.
    """
    from ...runtime.state.optimizer import OptimizerRequest, contract_of
    from ...runtime.verification.step_vectors import step_vectors

    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, str) or (optimizer is None and param_groups is None):
        if param_groups is not None:
            raise UsageError(f"param_groups go to an optimizer class, and {optimizer!r} is a name")
        return optimizer or "adamw"
    request = OptimizerRequest(optimizer, arguments or {}, param_groups)
    named, sparse = _named_parameters(model), _with_sparse_gradients(model)
    contract = contract_of(request, named, sparse)
    vectors = step_vectors(request, named, sparse)
    profile = Optimizer(contract.name, contract.states, 0, contract.demand, step_vectors=vectors)
    if contract.name.lower() not in OPTIMIZERS:
        return profile
    item_bytes = min((p.element_size() for _, p in named), default=4)
    known = named_optimizer(contract.name.lower(), item_bytes)
    as_known = (known.states, known.demand) == (profile.states, profile.demand)
    if not as_known or vectors > known.step_vectors:
        return profile
    return known.name if vectors == known.step_vectors else replace(known, step_vectors=vectors)


def _named_parameters(model: nn.Module | Model) -> list[tuple[str, nn.Parameter]]:
    import torch

    from ...runtime.state.optimizer import stand_in, trainable_parameters

    if not isinstance(model, Model):
        return trainable_parameters(model)
    return [
        (p.name, stand_in(p.type.shape, getattr(torch, p.type.dtype)))
        for p in model.parameters
        if p.trainable
    ]


def _with_sparse_gradients(model: nn.Module | Model) -> frozenset[str]:
    """Names of the tables of which a step gives gradients for the rows that it read."""
    from torch import nn

    if isinstance(model, Model):
        return sparse_gradients(model)
    tables = (nn.Embedding, nn.EmbeddingBag)
    modules = model.named_modules()
    return frozenset(f"{path}.weight" for path, m in modules if isinstance(m, tables) and m.sparse)


def run_time_optimizer(optimizer: Any) -> Any:
    """The optimizer that a program is opened with: None where the plan names one that communicates
    itself. Raises UsageError for the name of any other."""
    if isinstance(optimizer, str):
        if optimizer not in COMPRESSED_OPTIMIZERS:
            raise UsageError(
                f"{optimizer!r} names an optimizer for planning; to train, give its class, such as "
                f"torch.optim.AdamW"
            )
        return None
    return optimizer
