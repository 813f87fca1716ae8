"""A strategy is a word over mesh axes: which role each axis plays for a layer."""

from __future__ import annotations

from math import gcd, prod

import msgspec

from ..errors import UsageError
from ..mesh import Axis, Mesh
from .flat_shard import WHOLE, Fraction


class Role(msgspec.Struct, frozen=True):
    """What a mesh axis does for a layer.

    `batch`: splits the batch; `shards`: which of (optimizer, gradient, parameter) are cut along
    the axis; `operators`: splits operators by the loops of their weights; `sequence`: splits the
    tokens of a sample; `heads`: may give tokens for heads inside a layer; `experts`: experts lie
    apart and tokens travel to them; `stages`: separates pipeline stages.
    """

    name: str
    about: str
    batch: bool = False
    shards: tuple[str, ...] = ()
    operators: bool = False
    sequence: bool = False
    heads: bool = False
    experts: bool = False
    stages: bool = False

    @property
    def sums(self) -> bool:
        """Whether devices along the axis see different data, so that losses and gradients add up."""
        return self.batch or self.sequence

    @property
    def searched(self) -> bool:
        """Whether the split of every operator along the axis is found by search."""
        return self.operators or self.sequence


ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        Role("pp", "pipeline stages", stages=True),
        Role("dp", "batch split, everything else replicated", batch=True),
        Role("zero1", "batch split, optimizer sharded", batch=True, shards=("optimizer",)),
        Role(
            "zero2",
            "batch split, optimizer and gradients sharded",
            batch=True,
            shards=("optimizer", "gradient"),
        ),
        Role(
            "zero3",
            "batch split, optimizer, gradients and parameters sharded",
            batch=True,
            shards=("optimizer", "gradient", "parameter"),
        ),
        Role("ep", "batch split, experts apart: tokens travel to them", batch=True, experts=True),
        Role("cp", "tokens of a sample split, keys gathered", sequence=True),
        Role(
            "sp",
            "tokens of a sample split, heads inside attention; without a size: activations "
            "between tp's operators split by tokens",
            sequence=True,
            heads=True,
        ),
        Role("tp", "operators split by their loops", operators=True),
    )
}

LEVELS = ("zero3", "zero2", "zero1")  # cuts of a rank's piece laid flat, outermost first
MOST = 1 << 20  # ranks along an axis
FRACTIONAL = LEVELS[0]  # may cut a fraction of every weight
FLAG = "sp"  # without a size: the sequence over the axes of operators


class Strategy(msgspec.Struct, frozen=True):
    """Axis sizes by role, outermost first: `pp=2,zero3=2,tp=2`. A size of 1 marks a bare `sp`.

    `fraction`: of every weight, what is cut along the axis that cuts parameters: 3/4 of them under
    `zero3=8@3/4`. All ranks along it have copies of the rest.
    """

    axes: tuple[tuple[str, int], ...]
    fraction: Fraction = WHOLE

    def size(self, role: str) -> int:
        return prod(size for name, size in self.axes if name == role)

    @property
    def stages(self) -> int:
        """Pipeline stages."""
        return prod(size for name, size in self.axes if ROLES[name].stages)

    def stride(self, role: str) -> int:
        """Distance in ranks between neighbours along a role's axis."""
        names = [name for name, _ in self.axes]
        inner = self.axes[names.index(role) + 1 :] if role in names else self.axes
        return prod(size for _, size in inner)

    @property
    def mesh(self) -> Mesh:
        """The devices as a grid of these axes."""
        return Mesh(tuple(Axis(role, size) for role, size in self.axes or (("dp", 1),)))

    @property
    def devices(self) -> int:
        return prod(size for _, size in self.axes)

    def batch_ways(self) -> int:
        """Into how many pieces the batch is split."""
        return prod(size for name, size in self.axes if ROLES[name].batch)

    @property
    def tokens_between(self) -> bool:
        """Whether activations between operators that `tp` splits lie split by tokens."""
        return (FLAG, 1) in self.axes

    @property
    def searched(self) -> tuple[tuple[str, int], ...]:
        """The axes whose splits are found by search, and the bare `sp`."""
        return tuple((role, size) for role, size in self.axes if ROLES[role].searched)

    @property
    def inside(self) -> tuple[tuple[str, int], ...]:
        """The axes inside a replica of the batch: what shapes a function's local form."""
        return tuple(
            (role, size) for role, size in self.axes if ROLES[role].searched or ROLES[role].experts
        )

    @property
    def divisible(self) -> bool:
        """Whether it has an axis along which a fraction of the weights can be cut."""
        return self.size(FRACTIONAL) > 1

    def __str__(self) -> str:
        part = "" if self.fraction == WHOLE else "@{}/{}".format(*self.fraction)
        words = (
            FLAG if (name, size) == (FLAG, 1) else f"{name}={size}{part * (name == FRACTIONAL)}"
            for name, size in self.axes
        )
        return ",".join(words) or "dp=1"


def parse_strategy(word: str) -> Strategy:
    """Read a word such as `dp=2,tp=2`; raises UsageError naming the part that is wrong."""
    axes: list[tuple[str, int]] = []
    fraction = WHOLE
    for part in filter(None, word.replace(" ", "").split(",")):
        name, equals, amount = part.partition("=")
        size, at, of_each = amount.partition("@")
        if name not in ROLES:
            raise UsageError(f"strategy {word!r}: unknown role {name!r}; known: {', '.join(ROLES)}")
        if name == FLAG and not equals:
            size, equals = "1", "="
        if not equals or not size.isdecimal() or not 1 <= int(size) <= MOST:
            raise UsageError(f"strategy {word!r}: {name} needs a size, as in {name}=2")
        if name in dict(axes):
            raise UsageError(f"strategy {word!r}: role {name} appears twice")
        axes.append((name, int(size)))
        if at:
            fraction = _fraction(word, name, int(size), of_each)
    return Strategy(tuple(axes), fraction)


def _fraction(word: str, name: str, size: int, text: str) -> Fraction:
    """What stands behind an `@`, in lowest terms."""
    if name != FRACTIONAL or size < 2:
        raise UsageError(
            f"strategy {word!r}: a fraction of every weight is cut over {FRACTIONAL} of two ranks or "
            f"more, as in {FRACTIONAL}=2@1/2, not over {name}={size}"
        )
    over, slash, under = text.partition("/")
    numbers = over.isdecimal() and under.isdecimal()
    if not (slash and numbers and 0 < int(over) < int(under) <= MOST):
        raise UsageError(
            f"strategy {word!r}: {text!r} is not a fraction between 0 and 1, as in {name}={size}@3/4"
        )
    common = gcd(int(over), int(under))
    return int(over) // common, int(under) // common
