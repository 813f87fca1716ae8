"""All compression algorithms and programs, by name; names may have settings (`random-k:rate=1000`)."""

from __future__ import annotations

from functools import lru_cache

from .algorithms import activations, feedback, momentum, partial, robust, rows, sharded, stale
from .program import CompressionAlgorithm, CompressionProgram
from .settings import WithVariants, algorithm_named

FAMILIES = (sharded, momentum, feedback, robust, activations, rows, stale, partial)
NAMED = {a.name: a for family in FAMILIES for a in family.ALGORITHMS}
COMPRESSED_OPTIMIZER_ROLE = "dp"  # the role along which they communicate


@lru_cache(maxsize=256)
def algorithm(name: str) -> CompressionAlgorithm:
    """Return the algorithm `name`. Raises UsageError that lists the known names, or settings."""
    return algorithm_named(name, NAMED)


def _optimizer(name: str) -> CompressionAlgorithm | None:
    variant = algorithm(name)
    return variant if variant.is_optimizer else None


def _program(name: str, rows: bool) -> CompressionProgram | None:
    """`random-k:rate=1000.gradients`: the program of that name of `random-k:rate=1000`."""
    variant = algorithm(name.rpartition(".")[0])
    named = (p for p in variant.programs if p.name == name and (p.payload == "rows") == rows)
    return next(named, None)


def _named(rows: bool) -> WithVariants[CompressionProgram]:
    """Programs over flat buckets, or over rows, by name."""
    known = {p.name: p for a in NAMED.values() for p in a.programs if (p.payload == "rows") == rows}
    return WithVariants(known, lambda name: _program(name, rows))


ALGORITHMS = WithVariants(NAMED, algorithm)
COMPRESSED_OPTIMIZERS = WithVariants({n: a for n, a in NAMED.items() if a.is_optimizer}, _optimizer)
PROGRAMS, ROW_PROGRAMS = _named(rows=False), _named(rows=True)


def programs(name: str) -> tuple[CompressionProgram, ...]:
    """Return the programs of algorithm `name`, or program `name` alone. Raises UsageError."""
    return (PROGRAMS[name],) if name in PROGRAMS else algorithm(name).programs
