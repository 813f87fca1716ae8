"""Cross-entropy over a vocabulary that tensor ranks split, by torch's `loss_parallel`.

    head    its columns are classes: while gradients are taken, its logits stay split (a DTensor)
    loss    is computed within `loss_parallel`, as is its part of backward: from the gradient of the
            loss to that of the logits

Without gradients the head gives whole logits, as evaluation reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, loss_parallel

from ...ir.model.model import Model
from ...ir.ops.loss import CLASS_LOOP, CROSS_ENTROPY
from ...ir.plan.plan import Plan
from .styles import split_layers


def vocabulary_head(plan: Plan, model: Model, styles: Mapping[str, ParallelStyle]) -> str | None:
    """The module whose columns are the classes of a loss that the plan splits; None without one."""
    functions = {function.name: function for function in model.functions}
    for layers, sharding, place in split_layers(plan):
        ops = zip(functions[sharding.function].forward_ops, sharding.op_splits, strict=False)
        splits = [splits[place] for op, splits in ops if op.target == CROSS_ENTROPY]
        if any(factor.loop == CLASS_LOOP for split in splits for factor in split.factors):
            names = {n for c in model.calls[layers.first : layers.last] for n in c.parameters}
            names |= {a for p in model.parameters if p.name in names for a in p.aliases}
            columns = [p for p, style in styles.items() if isinstance(style, ColwiseParallel)]
            return next((p for p in reversed(columns) if f"{p}.weight" in names), None)
    return None


class VocabularyLoss:
    """Lets a module that computes its loss in its forward split the loss over tensor ranks."""

    def __init__(self, root: nn.Module, head: nn.Module) -> None:
        self.split: bool = True
        self._within: AbstractContextManager[Any, Any] | None = None
        head.register_forward_hook(self._logits)
        root.register_forward_pre_hook(self._before)
        root.register_forward_hook(self._after)

    def _enter(self) -> None:
        self._within = loss_parallel()
        self._within.__enter__()

    def leave(self, _: Any = None) -> None:
        """End what `loss_parallel` does to losses, if it does."""
        if self._within is not None:
            self._within.__exit__(None, None, None)
        self._within = None

    def _logits(self, _: nn.Module, given: Any, logits: Any) -> Any:
        if not (self.split and torch.is_grad_enabled()):
            return logits.full_tensor()
        logits.register_hook(self.leave)
        return logits

    def _before(self, _: nn.Module, given: Any) -> None:
        if self.split and torch.is_grad_enabled():
            self._enter()

    def _after(self, _: nn.Module, given: Any, output: Any) -> Any:
        self.leave()
        loss = getattr(output, "loss", output)
        if not isinstance(loss, DTensor):
            return output
        whole = loss.full_tensor()
        if loss.requires_grad:
            loss.register_hook(lambda _: self._enter())
        if loss is output:
            return whole
        output.loss = whole
        return output


def loss_of(module: nn.Module, batch: Any) -> Tensor | None:
    """The loss that a module's forward gives, with the graph of its gradients; None without one."""
    output = module(**batch) if isinstance(batch, Mapping) else module(*batch)
    loss = getattr(output, "loss", output)
    return loss if isinstance(loss, Tensor) and loss.dim() == 0 else None


def computes(loss: VocabularyLoss, module: nn.Module, batch: Any, expected: Tensor) -> bool:
    """Whether a module's code computes the same loss of split logits."""
    try:
        value = loss_of(module, batch)
    except (RuntimeError, ValueError, NotImplementedError, TypeError, AttributeError):
        loss.leave()
        return False
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    return value is not None and torch.allclose(value.detach(), expected, tolerance, tolerance)
