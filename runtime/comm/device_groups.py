"""Which device group this rank is in, and which groups have a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from ...ir.plan.program import GroupProgram


class DeviceGroups:
    """The device groups of a program; `number` is the one of rank `rank`."""

    def __init__(self, programs: Sequence[GroupProgram], rank: int) -> None:
        self.programs = tuple(programs)
        self.number = next(n for n, one in enumerate(programs) if rank in one.ranks)

    @property
    def program(self) -> GroupProgram:
        """What this rank's group runs."""
        return self.programs[self.number]

    @cached_property
    def holders(self) -> dict[str, tuple[int, ...]]:
        """By tensor the groups that have it, in order."""
        holders: dict[str, list[int]] = {}
        for number, one in enumerate(self.programs):
            for spec in one.table.state_tensors:
                if one.stage in spec.stages:
                    for name in spec.names():
                        holders.setdefault(name, []).append(number)
        return {name: tuple(numbers) for name, numbers in holders.items()}

    def owner(self, name: str) -> int:
        """The first group that has a tensor; the first of all where none has."""
        return self.holders.get(name, (0,))[0]
