"""Parts of rows whose sizes nobody knows: `x.split(counts.tolist())` and `torch.cat(parts)`.

Each part is all rows with a mask of its own (`selected`), so that experts in turn compute with all rows.
Joined in their order, the parts are the rows again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .selected import Selections

JOINS = {"cat", "concat", "concatenate"}


class Parts:
    """The masks of the parts that a call of `split` gave."""

    def __init__(self, selections: Selections) -> None:
        self.selections = selections
        self.splits: list[list[Tensor]] = []

    def call(self, name: str, args: Any, kwargs: Any) -> Any:
        """What a call that splits or joins parts gives; None for another call."""
        if name == "split":
            named = dict(zip(("x", "sizes", "dim"), args, strict=False)) | kwargs
            sizes = named.get("split_size", named.get("sizes"))
            counted = isinstance(sizes, list | tuple) and any(isinstance(n, Tensor) for n in sizes)
            return self.split(args[0], sizes) if counted and named.get("dim", 0) == 0 else None
        if name in JOINS and args and isinstance(args[0], list | tuple):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            return self.joined(args[0]) if dim == 0 else None
        return None

    def split(self, x: Tensor, sizes: Sequence[Tensor | int]) -> tuple[Tensor, ...]:
        counts = torch.stack([torch.as_tensor(n) for n in sizes])
        ends = counts.cumsum(0)
        place = torch.arange(x.shape[0])
        masks = [
            (place >= end - count) & (place < end)
            for end, count in zip(ends.unbind(0), counts.unbind(0), strict=True)
        ]
        self.splits.append(masks)
        return tuple(self.selections.select(x, mask) for mask in masks)

    def joined(self, parts: Sequence[Any]) -> Tensor | None:
        """All rows, each of the part that has it; None where these are not all parts in their order."""
        masks = [self.selections.mask(part) for part in parts]
        for split in self.splits:
            if len(split) == len(masks) and all(a is b for a, b in zip(split, masks, strict=True)):
                rows = torch.zeros_like(parts[0])
                for mask, part in zip(split, parts, strict=True):
                    rows = torch.where(mask.reshape(-1, *(1,) * (part.dim() - 1)), part, rows)
                return rows
        return None
