"""All compression algorithms and programs, by name."""

from __future__ import annotations

from types import MappingProxyType

from ..errors import UsageError
from ..unknown_name import unknown_name
from .algorithms import activations, feedback, momentum, robust, sharded
from .program import CompressionAlgorithm, CompressionProgram

FAMILIES = (sharded, momentum, feedback, robust, activations)
ALGORITHMS = MappingProxyType({a.name: a for family in FAMILIES for a in family.ALGORITHMS})
COMPRESSED_OPTIMIZERS = MappingProxyType(
    {name: a for name, a in ALGORITHMS.items() if a.is_optimizer}
)
COMPRESSED_OPTIMIZER_ROLE = "dp"  # the role along which they communicate
PROGRAMS = MappingProxyType({p.name: p for a in ALGORITHMS.values() for p in a.programs})


def algorithm(name: str) -> CompressionAlgorithm:
    """Return the algorithm `name`. Raises UsageError that lists the known names."""
    if name not in ALGORITHMS:
        raise UsageError(unknown_name("compression algorithm", name, ALGORITHMS))
    return ALGORITHMS[name]


def programs(name: str) -> tuple[CompressionProgram, ...]:
    """Return the programs of algorithm `name`, or program `name` alone. Raises UsageError."""
    return (PROGRAMS[name],) if name in PROGRAMS else algorithm(name).programs
