"""A per-device function for any number of samples: amounts that grow linearly with them.

Flops, bytes and tensor sizes grow linearly with the samples per device, so the per-device functions
for two sizes give them for every size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...ir.analysis.liveness import storage_roots, writes_in_place
from ...ir.model.loops import Work
from ...ir.model.model import Function, Op
from .operator_cost import Pricer, is_collective

Floats = NDArray[np.float64]


class LinearAmounts(msgspec.Struct, frozen=True):
    """Amounts linear in the samples: `intercept + slope * samples`, elementwise."""

    intercept: Floats
    slope: Floats

    def at(self, samples: int) -> Floats:
        return self.intercept + self.slope * samples

    def zeros(self) -> LinearAmounts:
        """Zero amounts of the same shape."""
        return LinearAmounts(0.0 * self.intercept, 0.0 * self.slope)


class SampledFunction:
    """One per-device function, given for `samples[0]` and `samples[1]` samples per device, with the
    prices of its operators. Both sizes are the same where only one is possible."""

    def __init__(
        self, pricer: Pricer, locals_: tuple[Function, Function], samples: tuple[int, int]
    ) -> None:
        self.pricer, self.local_functions, self.samples = pricer, locals_, samples
        local = locals_[0]
        views = (op for op in local.ops if writes_in_place(op) or self.work(op) == "view")
        self.roots = storage_roots(len(local.types), views)

    def linear(self, amounts: Callable[[Function], Sequence[float]]) -> LinearAmounts:
        """Linear interpolation of amounts of the functions of both sizes."""
        near, far = (
            np.array(list(amounts(local)), dtype=np.float64) for local in self.local_functions
        )
        return self.interpolate(near, far)

    def interpolate(self, near: Floats, far: Floats) -> LinearAmounts:
        one, two = self.samples
        slope = (far - near) / (two - one) if two != one else np.zeros_like(near)
        return LinearAmounts(near - slope * one, slope)

    def bytes_of(self, values: Sequence[int]) -> LinearAmounts:
        return self.linear(lambda local: [local.types[v].bytes if v >= 0 else 0 for v in values])

    def work(self, op: Op) -> Work:
        return "move" if is_collective(op) else self.pricer.load(self.local_functions[0], op).work
