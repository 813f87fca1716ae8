"""A measured cost curve: seconds at some amounts, interpolated linearly.

seconds │          ╱  beyond the last point the last rate goes on
        │     .──'
        │────'        below the first point its seconds are the least there is
        └──────────── amount (bytes, or floating-point operations)
"""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec

MAX_POINTS = 256


class Curve(msgspec.Struct, frozen=True):
    """Measured seconds of `name`: an operator, a kind of work ("gemm") or a collective.

    `by`: "flops" or "bytes" of one call. `ranks`: of a collective's group, 0 for what a device does
    alone. `dtype` is that of the measurement; for costs by bytes it does not matter.
    """

    name: str
    by: str
    amounts: tuple[float, ...]
    seconds: tuple[float, ...]
    dtype: str = "float32"
    ranks: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        if self.by not in ("flops", "bytes"):
            raise ValueError(f"by: {self.by!r:.40} is neither flops nor bytes")
        if not 1 <= len(self.amounts) == len(self.seconds) <= MAX_POINTS:
            raise ValueError("amounts, us: as many of one as of the other are needed, at least one")
        good = all(math.isfinite(x) and x > 0 for x in (*self.amounts, *self.seconds))
        if not good or any(a >= b for a, b in pairwise(self.amounts)):
            raise ValueError(
                "amounts, us: positive numbers in ascending order of amounts are needed"
            )

    def at(self, amount: float) -> float:
        """Seconds of one call with this amount."""
        last = self.amounts[-1]
        if amount >= last:
            return self.seconds[-1] * amount / last
        if amount <= self.amounts[0]:
            return self.seconds[0]
        place = next(i for i, known in enumerate(self.amounts) if known > amount)
        (x0, x1), (y0, y1) = (c[place - 1 : place + 1] for c in (self.amounts, self.seconds))
        return y0 + (y1 - y0) * (amount - x0) / (x1 - x0)
