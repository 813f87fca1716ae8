"""Static memory allocation as data: buffers with known lifetimes, and their offsets in an arena."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["optimal", "feasible", "infeasible", "unknown"]


class Buffer(msgspec.Struct, frozen=True):
    """`size` bytes that are live from `lower` up to, but not at, `upper` (any unit of time)."""

    name: str
    lower: int
    upper: int
    size: int


class Packing(msgspec.Struct, frozen=True):
    """`offsets` in bytes, one per buffer in order; `peak_bytes` is the height they reach.

    No packing is lower than `bound_bytes`. `status` is `optimal` when the two are equal, `feasible`
    when the peak is within the capacity asked for, `infeasible` when it is proved that nothing is,
    and `unknown` when time ran out before either; the offsets are then the best found, above capacity.
    """

    offsets: tuple[int, ...]
    peak_bytes: int
    lower_bound_bytes: int
    status: Status

    @property
    def gap(self) -> float:
        """How far the peak may be from the least one, as a share of the peak."""
        return (
            (self.peak_bytes - self.lower_bound_bytes) / self.peak_bytes if self.peak_bytes else 0.0
        )

    def __str__(self) -> str:
        return (
            f"{self.status}: {len(self.offsets)} buffers in {self.peak_bytes} bytes, "
            f"no less than {self.lower_bound_bytes} ({self.gap:.2%} gap)"
        )
