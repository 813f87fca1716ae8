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

STAYING = ("parameters", "gradients", "optimizer")  # terms of memory that last from batch to batch


class Bucket(NamedTuple):
    """A sequence length and its plan, with the table of its program."""

    tokens: int
    plan: Plan
    table: ProgramTable


class Switch(NamedTuple):
    """What a batch of length `away` costs where a program trains under the plan of length `home`: bytes
    that ranks receive, and at most `peak_bytes` on a device that has both plans' tensors."""

    home: int
    away: int
    received: RedistributionBytes
    peak_bytes: int


def bucket(tokens: int, plan: Plan, model: Model) -> Bucket:
    return Bucket(tokens, plan, plan_table(plan, model))


def switches_between(buckets: Sequence[Bucket]) -> list[Switch]:
    """All ordered pairs of plans."""
    return [
        Switch(a.tokens, b.tokens, received, _peak_of_both(a.plan, b.plan, received))
        for a, b in permutations(buckets, 2)
        for received in [redistribution_bytes(a.table, b.table)]
    ]


def _peak_of_both(home: Plan, away: Plan, received: RedistributionBytes) -> int:
    """What stays of one plan beside what runs of the other, which shares the parameters where none
    moves and has no states of the optimizer."""
    staying = max(sum(n for k, n in s.memory_terms if k in STAYING) for s in home.stages)
    left_out = STAYING[2:] if any(received.parameters) else (STAYING[0], STAYING[2])
    return staying + max(
        sum(n for k, n in stage.memory_terms if k not in left_out) for stage in away.stages
    )


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


def switch_json(switch: Switch) -> dict[str, Any]:
    amounts, worst = switch.received, switch.received.worst_rank
    return {
        "from": switch.home,
        "to": switch.away,
        "peak": switch.peak_bytes,
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


def switch_rows(switches: Sequence[Switch]) -> Iterator[str]:
    columns = f"{'parameters':>12}{'gradients':>12}{'worst rank':>22}{'peak':>12}"
    yield f"\n{'from, and for a batch':<23}{columns}"
    for switch in switches:
        amounts, worst = switch.received, switch.received.worst_rank
        received = f"{size(amounts.by_rank[worst])} (rank {worst})"
        yield (
            f"{f'{switch.home}, {switch.away}':<23}{size(sum(amounts.parameters)):>12}"
            f"{size(sum(amounts.gradients)):>12}{received:>22}{gib(switch.peak_bytes):>12}"
        )
