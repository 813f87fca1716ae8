"""Every algorithm and every program by its name."""

from __future__ import annotations

from types import MappingProxyType

from ..errors import UsageError
from .algorithms import activations, feedback, momentum, robust, sharded
from .program import Algorithm, Program

FAMILIES = (sharded, momentum, feedback, robust, activations)
ALGORITHMS = MappingProxyType({a.name: a for family in FAMILIES for a in family.ALGORITHMS})
LEADERS = MappingProxyType({name: a for name, a in ALGORITHMS.items() if a.leads})
LED = "dp"  # the role along which they talk
PROGRAMS = MappingProxyType({p.name: p for a in ALGORITHMS.values() for p in a.programs})


def algorithm(name: str) -> Algorithm:
    """Raises UsageError with the names there are."""
    if name not in ALGORITHMS:
        raise UsageError(f"no compression algorithm {name!r}: there are {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


def programs(name: str) -> tuple[Program, ...]:
    """Those of an algorithm, or the one of that name. Raises UsageError with the names there are."""
    return (PROGRAMS[name],) if name in PROGRAMS else algorithm(name).programs
