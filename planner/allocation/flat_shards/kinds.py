"""Tensors grouped by equal length and block size, since only their number matters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from .problem import FlatTensor

Ints = NDArray[np.int64]


class TensorKinds(msgspec.Struct, frozen=True):
    """Per kind: elements of a tensor, elements of a block, number of tensors."""

    elements: Ints
    block: Ints
    counts: Ints
    total: int

    @classmethod
    def of(cls, tensors: Sequence[FlatTensor]) -> TensorKinds:
        groups = sorted(Counter(key(t) for t in tensors if t.elements).items())
        elements, block = (np.array([k[i] for k, _ in groups], np.int64) for i in range(2))
        counts = np.array([n for _, n in groups], np.int64)
        return cls(elements, block, counts, sum(t.elements for t in tensors))

    def offsets(
        self, tensors: Sequence[FlatTensor], order: list[int], starts: list[int]
    ) -> tuple[int, ...]:
        """Offset of each tensor from the offsets of kinds; tensors of a kind keep their order."""
        pairs = list(zip(self.elements.tolist(), self.block.tolist(), strict=True))
        places: dict[tuple[int, int], list[int]] = {pair: [] for pair in pairs}
        for kind, at in sorted(zip(order, starts, strict=True), key=lambda pair: -pair[1]):
            places[pairs[kind]].append(at)
        return tuple(places[key(t)].pop() if t.elements else 0 for t in tensors)


def key(tensor: FlatTensor) -> tuple[int, int]:
    return tensor.elements, min(tensor.block, tensor.elements)
