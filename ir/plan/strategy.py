"""A strategy: the mesh axes of a layer, and the role that each of them plays."""

from __future__ import annotations

from functools import lru_cache
from math import gcd, prod

import msgspec

from ..errors import UsageError
from ..model.loops import Paired
from ..model.mesh import Axis, Mesh
from ..ranges import AxisSize
from ..unknown_name import unknown_name
from .flat_shard import FULL, Fraction


class Role(msgspec.Struct, frozen=True):
    """What a mesh axis does for a layer.

    `batch`: splits the batch; `shards`: which of (optimizer, gradient, parameter) are sharded along
    the axis; `operators`: splits operators by the loops of their weights; `sequence`: splits the
    tokens of a sample; `heads`: may exchange token shards for head shards inside a layer (Ulysses);
    `experts`: shards the experts and dispatches tokens to them; `slices`: shards the weights of matrix
    products, each of which gathers its own in slices; `tables`: shards the rows of tables and sends
    look-ups to them; `stages`: separates pipeline stages.
    """

    name: str
    about: str
    batch: bool = False
    shards: tuple[str, ...] = ()
    operators: bool = False
    sequence: bool = False
    heads: bool = False
    experts: bool = False
    slices: bool = False
    tables: bool = False
    stages: bool = False

    @property
    def splits_data(self) -> bool:
        """Whether ranks along the axis see different data, so that losses and gradients are summed."""
        return self.batch or self.sequence

    @property
    def divides_operators(self) -> bool:
        """Whether ranks along the axis have parts of operators and of their weights."""
        return self.searched or self.experts or self.slices or self.tables

    @property
    def paired(self) -> Paired | None:
        """What of the weights each rank has its own of, to which data travel."""
        return "experts" if self.experts else "rows" if self.tables else None

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
        Role(
            "slice",
            "batch split, weights of matrix products sharded and gathered in slices, never whole",
            batch=True,
            slices=True,
        ),
        Role(
            "rows",
            "batch split, rows of tables apart: every distinct look-up travels to its row",
            batch=True,
            tables=True,
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

SEARCHED_ROLES = tuple(  # unless others are asked for
    name for name, role in ROLES.items() if not (role.slices or role.tables)
)
ZERO_ROLES = ("zero3", "zero2", "zero1")  # axes that shard flattened state, outermost first
MAX_AXIS_SIZE = 1 << 20  # ranks along an axis
FRACTION_ROLE = ZERO_ROLES[0]  # may shard only a fraction of every weight
SEQUENCE_FLAG = (
    "sp"  # without a size: tokens sharded over the operator axes (Megatron sequence parallelism)
)


class Strategy(msgspec.Struct, frozen=True):
    """Axis sizes by role, outermost first: `pp=2,zero3=2,tp=2`. A size of 1 marks a bare `sp`.

    `fraction`: the part of every weight that zero3 shards, 3/4 under `zero3=8@3/4`; the rest is
    replicated along that axis.
    """

    axes: tuple[tuple[str, AxisSize], ...]
    fraction: Fraction = FULL

    def size(self, role: str) -> int:
        """Ranks along a role's axis; 1 where the strategy has none."""
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
        """The device mesh of these axes; one `dp` axis of size 1 where there are none."""
        return Mesh(tuple(Axis(role, size) for role, size in self.axes or (("dp", 1),)))

    @property
    def devices(self) -> int:
        """Number of devices."""
        return prod(size for _, size in self.axes)

    def batch_degree(self) -> int:
        """Number of shards that the batch is split into over devices."""
        return prod(size for name, size in self.axes if ROLES[name].batch)

    @property
    def sequence_parallel(self) -> bool:
        """Whether activations between the operators that `tp` splits are sharded by tokens."""
        return (SEQUENCE_FLAG, 1) in self.axes

    @property
    def searched_axes(self) -> tuple[tuple[str, int], ...]:
        """The axes along which the split of every operator is searched, with the bare `sp`."""
        return tuple((role, size) for role, size in self.axes if ROLES[role].searched)

    @property
    def model_axes(self) -> tuple[tuple[str, int], ...]:
        """The axes inside one model replica: they decide the shapes of the per-device function."""
        return tuple((role, size) for role, size in self.axes if ROLES[role].divides_operators)

    @property
    def supports_fraction(self) -> bool:
        """Whether an axis can shard a fraction of the weights."""
        return self.size(FRACTION_ROLE) > 1

    def __str__(self) -> str:
        return _text(self.axes, self.fraction)


@lru_cache(1 << 14)
def _text(axes: tuple[tuple[str, int], ...], fraction: Fraction) -> str:
    suffix = "" if fraction == FULL else "@{}/{}".format(*fraction)
    texts = (
        SEQUENCE_FLAG
        if (name, size) == (SEQUENCE_FLAG, 1)
        else f"{name}={size}{suffix * (name == FRACTION_ROLE)}"
        for name, size in axes
    )
    return ",".join(texts) or "dp=1"


def parse_strategy(text: str) -> Strategy:
    """Read a strategy such as `dp=2,tp=2`; raises UsageError naming the part that is wrong."""
    axes: list[tuple[str, int]] = []
    fraction = FULL
    for part in filter(None, text.replace(" ", "").split(",")):
        name, equals, amount = part.partition("=")
        size, at, of_each = amount.partition("@")
        if name not in ROLES:
            role = part.rstrip("0123456789")  # tp4
            digits = part[len(role) :]
            if role in ROLES:
                raise UsageError(f"strategy {text!r:.80}: write {role}={digits}, not {part}")
            raise UsageError(unknown_name("role", name, ROLES, f"strategy {text!r:.80}"))
        if name == SEQUENCE_FLAG and not equals:
            size, equals = "1", "="
        if not equals or not size.isdecimal() or not 1 <= int(size) <= MAX_AXIS_SIZE:
            raise UsageError(f"strategy {text!r}: {name} needs a size, as in {name}=2")
        if name in dict(axes):
            raise UsageError(f"strategy {text!r}: role {name} appears twice")
        axes.append((name, int(size)))
        if at:
            fraction = _fraction(text, name, int(size), of_each)
    return Strategy(tuple(axes), fraction)


def _fraction(text: str, name: str, size: int, amount: str) -> Fraction:
    """Parse the fraction after an `@`, in lowest terms."""
    if name != FRACTION_ROLE or size < 2:
        raise UsageError(
            f"strategy {text!r}: a fraction of every weight is cut over {FRACTION_ROLE} of two ranks or "
            f"more, as in {FRACTION_ROLE}=2@1/2, not over {name}={size}"
        )
    over, slash, under = amount.partition("/")
    numbers = over.isdecimal() and under.isdecimal()
    if not (slash and numbers and 0 < int(over) < int(under) <= MAX_AXIS_SIZE):
        raise UsageError(
            f"strategy {text!r}: {amount!r} is not a fraction between 0 and 1, as in {name}={size}@3/4"
        )
    common = gcd(int(over), int(under))
    return int(over) // common, int(under) // common
