"""Gradients of all ranks and stages at once: norm, clipping, whether they are finite, loss scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir.errors import NonFiniteError, UsageError
from ...ir.plan.strategy import ROLES
from ..comm.program_groups import MeshGroups
from .local_parameter import LocalParameter
from .parameters import ParameterStore
from .whole_tensors import sharding_axes

GROWTH_INTERVAL = 2000  # steps in a row without an overflow before the scale grows
SMALLEST = 2.0**-16  # where gradients overflow still, they do at any scale


@dataclass
class LossScale:
    """Dynamic loss scaling, so that small gradients of float16 training do not vanish.

    Backward starts at `value` instead of 1, and gradients are divided by it once they are summed, in
    float32. A step in which any of them overflowed is skipped and the scale is halved; after many
    `steps` in a row without one it is doubled (Micikevicius et al. 2018, Mixed Precision Training).
    The same on every rank.
    """

    value: float = 2.0**16
    steps: int = 0

    def update(self, *, finite: bool) -> None:
        """Note whether all gradients of a step were finite.

        Raises NonFiniteError where they are not at the smallest scale either.
        """
        if not finite:
            self.value, self.steps = self.value / 2, 0
        elif self.steps + 1 < GROWTH_INTERVAL:
            self.steps += 1
        else:
            self.value, self.steps = self.value * 2, 0
        if self.value < SMALLEST:
            raise NonFiniteError(
                f"gradients are NaN or infinite at a loss scale of {2 * self.value:g} still: the model "
                f"overflows float16 in forward, or divides by zero; train in bf16, or cast there"
            )


def clip_grad_norm(
    store: ParameterStore,
    groups: MeshGroups,
    max_norm: float,
    norm_type: float = 2.0,
    *,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients so that their norm is at most `max_norm`; gives the norm before, in float64.

    The same numbers as `torch.nn.utils.clip_grad_norm_` on the unsharded gradients. All ranks
    together. Raises UsageError for a norm that cannot be summed over ranks.
    """
    if store.compressed_optimizer is not None:
        raise UsageError(
            f"{type(store.compressed_optimizer).__name__} sums gradients over ranks itself, compressed: "
            f"their norm is not known before its step"
        )
    norm = total_norm(store, groups, float(norm_type))
    if error_if_nonfinite and not bool(norm.isfinite()):
        raise NonFiniteError(f"the norm of order {norm_type} of all gradients is {norm.item()}")
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for parameter in store.trainable():
        leaf = parameter.leaf
        if leaf is not None and leaf.grad is not None:
            leaf.grad = leaf.grad * factor.to(leaf.grad.device, leaf.grad.dtype)
    return norm


def total_norm(store: ParameterStore, groups: MeshGroups, order: float) -> Tensor:
    """The norm of the gradients of all parameters, as one vector, in float64."""
    if not order > 0:
        raise UsageError(f"a norm of order {order} cannot be clipped: take one above 0, or inf")
    total = torch.zeros((), dtype=torch.float64, device=store.device)
    for gradient in distinct_gradients(store, groups):
        if not gradient.numel():
            continue
        norm = torch.linalg.vector_norm(gradient, order, dtype=torch.float64)
        total = torch.maximum(total, norm) if math.isinf(order) else total + norm**order
    groups.everyone.all_reduce_(total, "the norm of all gradients", largest=math.isinf(order))
    return total if math.isinf(order) else total ** (1.0 / order)


def distinct_gradients(store: ParameterStore, groups: MeshGroups) -> Iterator[Tensor]:
    """The reduced gradients that this rank stands for: over all ranks, every element once."""
    for parameter in store.trainable():
        leaf = parameter.leaf
        if leaf is None or leaf.grad is None or not _first_replica(store, groups, parameter):
            continue
        flat = values_of(leaf.grad).reshape(-1)
        levels = store.flat_groups[parameter.spec.mesh]
        if parameter.sharding.partially_sharded and levels[0].index:
            replicated = store.remainder(levels, parameter, flat).numel()
            flat = flat[: flat.numel() - replicated]
        yield flat


def _first_replica(store: ParameterStore, groups: MeshGroups, parameter: LocalParameter) -> bool:
    """Whether this rank is the first of those that have the same shard of a parameter."""
    mesh, spec = store.table.meshes[parameter.spec.mesh], parameter.spec
    sharded = sharding_axes(store.table, spec)
    place = mesh.coordinate(groups.rank)
    first = all(
        index == 0 or number in sharded or ROLES[axis.name].stages
        for number, (index, axis) in enumerate(zip(place, mesh.axes, strict=True))
    )
    return first and groups.owns(parameter.name, spec.stages)


def non_finite_names(store: ParameterStore, groups: MeshGroups) -> list[str]:
    """Names of parameters that have a NaN or an infinite gradient on any rank; all ranks together."""
    flags = [
        not bool(values_of(p.leaf.grad).isfinite().all())
        for p in store.trainable()
        if p.leaf is not None and p.leaf.grad is not None
    ]
    anywhere = torch.tensor(float(any(flags)), device=store.device)
    groups.everyone.all_reduce_(anywhere, "whether gradients are finite", largest=True)
    if not anywhere.item():
        return []
    names = [
        p.name
        for p in store.trainable()
        if p.leaf is not None
        and p.leaf.grad is not None
        and not values_of(p.leaf.grad).isfinite().all()
    ]
    rows = groups.everyone.gather_objects(names, "names of gradients that are not finite")
    return sorted({name for row in rows for name in row})


def values_of(gradient: Tensor) -> Tensor:
    """The elements of a gradient that may be other than zero."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def separate_gradients(store: ParameterStore) -> None:
    """Give every gradient memory of its own, so that optimizers and users may change it in place.

    Two parameters of one sum get the same gradient tensor from backward, for instance.
    """
    end = 0
    pairs = [
        (p.leaf, p.leaf.grad)
        for p in store.trainable()
        if p.leaf is not None and p.leaf.grad is not None and not p.leaf.grad.is_sparse
    ]
    for leaf, gradient in sorted(pairs, key=lambda pair: pair[1].data_ptr()):
        if not gradient.is_contiguous() or (gradient.numel() and gradient.data_ptr() < end):
            leaf.grad = gradient.clone(memory_format=torch.contiguous_format)
        else:
            end = gradient.data_ptr() + gradient.numel() * gradient.element_size()
