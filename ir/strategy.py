"""A strategy is a word over mesh axes: which role each axis plays for a layer."""

from __future__ import annotations

from math import prod

import msgspec

from .errors import UsageError


class Role(msgspec.Struct, frozen=True):
    """What a mesh axis does for a layer.

    `batch`: splits the batch; `shards`: which of (optimizer, gradient, parameter) are cut along
    the axis; `operators`: splits operators by their own loops; `stages`: separates pipeline stages.
    """

    name: str
    about: str
    batch: bool = False
    shards: tuple[str, ...] = ()
    operators: bool = False
    stages: bool = False


ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        Role("pp", "pipeline stages", stages=True),
        Role("dp", "batch split, everything else replicated", batch=True),
        Role("zero1", "batch split, optimizer sharded", batch=True, shards=("optimizer",)),
        Role("zero2", "batch split, optimizer and gradients sharded", batch=True,
             shards=("optimizer", "gradient")),
        Role("zero3", "batch split, optimizer, gradients and parameters sharded", batch=True,
             shards=("optimizer", "gradient", "parameter")),
        Role("tp", "operators split by their loops", operators=True),
    )
}  # fmt: skip


class Strategy(msgspec.Struct, frozen=True):
    """Axis sizes by role, outermost first: `pp=2,zero3=2,tp=2`."""

    axes: tuple[tuple[str, int], ...]

    def size(self, role: str) -> int:
        return prod(size for name, size in self.axes if name == role)

    @property
    def devices(self) -> int:
        return prod(size for _, size in self.axes)

    def batch_ways(self) -> int:
        """Into how many pieces the batch is split."""
        return prod(size for name, size in self.axes if ROLES[name].batch)

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.axes) or "dp=1"


def parse_strategy(word: str) -> Strategy:
    """Read a word such as `dp=2,tp=2`; raises UsageError naming the part that is wrong."""
    axes: list[tuple[str, int]] = []
    for part in filter(None, word.replace(" ", "").split(",")):
        name, equals, size = part.partition("=")
        if name not in ROLES:
            raise UsageError(f"strategy {word!r}: unknown role {name!r}; known: {', '.join(ROLES)}")
        if not equals or not size.isdecimal() or not 1 <= int(size) <= 1 << 20:
            raise UsageError(f"strategy {word!r}: {name} needs a size, as in {name}=2")
        if name in dict(axes):
            raise UsageError(f"strategy {word!r}: role {name} appears twice")
        axes.append((name, int(size)))
    return Strategy(tuple(axes))
