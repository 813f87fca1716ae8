"""Operators that ask where their shard lies, and those that join their results over mesh axes.

Generated code calls them as `comm.<name>`. Most are plait's own operators with the places filled
in. With `over`, the operator is split along a loop that its result needs whole: it talks to the
other ranks of those axes itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ir.capture.operators.elementary import picked, widened
from ...ir.capture.operators.shard_offsets import inside
from .expert_all_to_all import experts, experts_backward

OPS = torch.ops.plait
Places = Any  # factors (local size, stride in the whole, axes that cut it), outermost first


class Placed:
    """What a rank's operators need of it: places, sums and exchanges over mesh axes."""

    sizes: dict[str, int]
    places: dict[str, int]

    def sum_over(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        raise NotImplementedError

    def max_over(self, x: Tensor, axes: tuple[str, ...]) -> Tensor:
        raise NotImplementedError

    def exchange(self, x: Tensor, axis: str, sent: list[int], received: list[int]) -> Tensor:
        """Rows of `x` to every rank of the axis in turn, and the rows that they send here."""
        raise NotImplementedError

    def index(self, places: Places) -> list[int]:
        """Flat triples (size, stride, start) of places."""
        triples: list[int] = []
        for size, stride, axes in places:
            position = 0
            for axis in axes:
                position = position * self.sizes[axis] + self.places[axis]
            triples += [size, stride, position * size]
        return triples

    def placed(self, args: tuple[object, ...]) -> list[object]:
        """Arguments with the places among them turned into triples."""
        return [self.index(arg) if _are_places(arg) else arg for arg in args]

    def dropout(self, *args: object) -> Tensor:
        """`plait::dropout` of a shard: its part of the whole tensor's mask."""
        return OPS.dropout(*self.placed(args))

    def attention(self, *args: object, over: tuple[str, ...] = ()) -> tuple[Tensor, Tensor]:
        """`plait::attention` of a shard. Over axes that split the keys every rank attends to its
        own, and the results are weighted by their parts of the whole sum."""
        out, logsumexp = OPS.attention(*self.placed(args))
        if not over:
            return out, logsumexp
        peak = self.max_over(logsumexp, over)
        weight = torch.exp(logsumexp - torch.where(peak.isneginf(), 0.0, peak))
        total = self.sum_over(weight, over)
        scaled = torch.where(weight.unsqueeze(-1) > 0, out * weight.unsqueeze(-1), 0.0)
        whole = self.sum_over(scaled, over) / torch.where(total > 0, total, 1.0).unsqueeze(-1)
        return whole.to(out.dtype), peak + total.log()

    def attention_backward(self, *args: object) -> tuple[Tensor, ...]:
        """The gradients of `attention`."""
        return OPS.attention_backward(*self.placed(args))

    def attention_backward_bias(self, *args: object) -> tuple[Tensor, ...]:
        """The gradients of `attention`, and of its bias."""
        return OPS.attention_backward_bias(*self.placed(args))

    def embedding(self, table: Tensor, indices: Tensor, rows: Places, *_: object) -> Tensor:
        """Rows of a shard of the table; zeros for rows that lie elsewhere."""
        local, here = inside(indices, self.index(rows))
        return table[local] * here.unsqueeze(-1)

    def embedding_dense_backward(
        self,
        gradient: Tensor,
        indices: Tensor,
        count: int,
        padding: int,
        scaled: bool,
        rows: Places,
    ) -> Tensor:
        """The gradient of a shard of the table."""
        local, here = inside(indices, self.index(rows))
        result = gradient.new_zeros(count, gradient.shape[-1])
        used = here & (indices != padding)
        rows_of = (gradient * used.unsqueeze(-1)).reshape(-1, gradient.shape[-1])
        return result.index_add_(0, local.reshape(-1), rows_of)

    def cross_entropy(
        self, logits: Tensor, labels: Tensor, ignore: int, classes: Places, *, over: tuple[str, ...]
    ) -> tuple[Tensor, Tensor]:
        """Losses and logsumexp of rows whose classes lie over several ranks."""
        wide = widened(logits)
        peak = self.max_over(wide.amax(-1), over)
        valid = labels != ignore
        scores = picked(wide, labels, valid, self.index(classes))
        exponents = torch.exp(wide - peak.unsqueeze(1)).sum(-1)
        total, score = self.sum_over(torch.stack([exponents, scores]), over)
        logsumexp = total.log() + peak
        return torch.where(valid, logsumexp - score, 0.0).to(logits.dtype), logsumexp

    def cross_entropy_backward(self, *args: object) -> Tensor:
        """The gradient of a shard of the logits."""
        return OPS.cross_entropy_backward(*self.placed(args))

    def experts(self, *args: Any, over: tuple[str, ...] = ()) -> Tensor:
        """`plait::experts` with a shard of the experts; over an axis, of tokens and experts."""
        if not over:
            return OPS.experts(*self.placed(args))
        return experts(self, over, *args)

    def experts_backward(self, *args: Any, over: tuple[str, ...] = ()) -> tuple[Tensor, ...]:
        """The gradients of `experts`."""
        if not over:
            return OPS.experts_backward(*self.placed(args))
        return experts_backward(self, over, *args)


def _are_places(arg: object) -> bool:
    return (
        isinstance(arg, list | tuple)
        and len(arg) > 0
        and all(isinstance(f, list | tuple) and len(f) == 3 for f in arg)
        and all(isinstance(f[2], list | tuple) for f in arg)
    )
