"""Plans for several lengths of sequences, and what switching between two of them sends (HotSPa).

A step runs short samples under one plan and long ones under another, with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any, NamedTuple

from ...codegen.table import plan_table
from ...ir.errors import UsageError
from ...ir.lowering.redistribute import RedistributionBytes, redistribution_bytes
from ...ir.model.model import Model
from ...ir.plan.plan import Plan
from ...ir.plan.program import ProgramTable
from ...ir.text.units import gib, micro_batches, seconds, size

Switches = dict[
    tuple[int, int], RedistributionBytes
]  # by the lengths that are switched from and to


class Bucket(NamedTuple):
    """A sequence length and its plan, with the table of its program."""

    tokens: int
    plan: Plan
    table: ProgramTable


def bucket(tokens: int, plan: Plan, model: Model) -> Bucket:
    return Bucket(tokens, plan, plan_table(plan, model))


def switches_between(buckets: Sequence[Bucket]) -> Switches:
    """What every rank receives where a program that trains under one plan runs a batch under another,
    for all ordered pairs."""
    return {
        (a.tokens, b.tokens): redistribution_bytes(a.table, b.table)
        for a, b in permutations(buckets, 2)
    }


def parse_buckets(text: str) -> list[tuple[int, int | None]]:
    """`4096:64,16384` as lengths in tokens and samples per step; raises UsageError."""
    batches: dict[int, int | None] = {}
    for part in text.split(","):
        tokens, colon, batch = part.partition(":")
        numbers = [tokens, batch] if colon else [tokens]
        if not all(n.isdecimal() and int(n) for n in numbers) or int(tokens) in batches:
            raise UsageError(f"--buckets {text!r}: {part!r} is no further length such as 4096:64")
        batches[int(tokens)] = int(batch) if colon else None
    return list(batches.items())


def switch_json(old: int, new: int, amounts: RedistributionBytes) -> dict[str, Any]:
    worst = amounts.worst_rank
    return {
        "from": old,
        "to": new,
        "parameter_bytes": sum(amounts.parameters),
        "gradient_bytes": sum(amounts.gradients),
        "worst_rank": worst,
        "worst_rank_bytes": amounts.by_rank[worst],
        "bytes_by_rank": amounts.by_rank,
    }


def plan_rows(buckets: Sequence[Bucket]) -> Iterator[str]:
    yield f"{'tokens':>8}{'batch':>8}{'step':>10}{'tokens/s':>12}{'peak':>12}  strategy"
    for tokens, plan, _ in buckets:
        p = plan.prediction
        yield (
            f"{tokens:>8}{plan.global_batch:>8}{seconds(p.step_seconds):>10}"
            f"{p.tokens_per_second:>12.4g}{gib(plan.peak_bytes):>12}  {plan.strategy_text}, "
            f"{micro_batches(plan.micro_batches)}"
        )


def switch_rows(switches: Switches) -> Iterator[str]:
    yield f"\n{'switch':<18}{'parameters':>12}{'gradients':>12}{'worst rank':>12}"
    for (old, new), amounts in switches.items():
        worst = amounts.worst_rank
        yield (
            f"{f'{old} to {new}':<18}{size(sum(amounts.parameters)):>12}"
            f"{size(sum(amounts.gradients)):>12}{size(amounts.by_rank[worst]):>12}  (rank {worst})"
        )
