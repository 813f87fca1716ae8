"""Device groups: the devices of one stage where stages differ, and the micro-batches they run.

micro-batches  ┌──────────────┬─────────┐
0 1 2 4 5 6    │ h100 tp=2    │ a100    │     groups tile the rectangle of calls and micro-batches:
               ├───────┬──────┤ dp=2    │     every micro-batch passes every call once
3 7            │ a100  │ a100 │         │
               └───────┴──────┴─────────┘
               calls →
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ...ranges import Count, Index


class DeviceGroup(msgspec.Struct, frozen=True, omit_defaults=True):
    """`devices` neighbouring devices of a part of the cluster, from its `first_device` on, which run
    their stage's calls for these of a step's `micro_batches`, in order."""

    part: Index
    first_device: Index
    devices: Count
    micro_batches: tuple[Index, ...]

    def overlaps(self, other: DeviceGroup) -> bool:
        """Whether a device is in both."""
        ends = self.first_device + self.devices, other.first_device + other.devices
        apart = ends[0] <= other.first_device or ends[1] <= self.first_device
        return self.part == other.part and not apart


def deal(counts: Sequence[int]) -> list[tuple[int, ...]]:
    """Micro-batches 0, 1, … dealt out so that every receiver gets its count, evenly spread: each goes
    to the one that is furthest behind its share."""
    total, dealt = sum(counts), [list[int]() for _ in counts]
    for number in range(total):
        behind = [
            (number + 1) * count - len(row) * total if len(row) < count else -total * total
            for count, row in zip(counts, dealt, strict=True)
        ]
        dealt[behind.index(max(behind))].append(number)
    return [tuple(row) for row in dealt]
