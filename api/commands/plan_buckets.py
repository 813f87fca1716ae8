"""`plait plan --buckets`: a plan for every length of sequences, and what switching between two of them
sends (HotSPa): a step runs short samples one way and long ones another, with the same weights."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from ...ir.devices.cluster import Cluster
from ...ir.errors import UsageError
from ...ir.lowering.redistribute import Received, received
from ...ir.plan.plan import Plan
from ...ir.program import Table
from .. import files
from ..plan_json import plan_json
from .common import TIME_LIMIT, asked, note, show, source_text, subject


class Bucket(NamedTuple):
    """A sequence length and its plan, with the table of its program."""

    tokens: int
    plan: Plan
    table: Table


def parse_buckets(text: str) -> list[tuple[int, int | None]]:
    """`4096:64,16384` as lengths in tokens and samples per step; raises UsageError."""
    found: dict[int, int | None] = {}
    for part in text.split(","):
        tokens, colon, batch = part.partition(":")
        numbers = [tokens, batch] if colon else [tokens]
        if not all(n.isdecimal() and int(n) for n in numbers) or int(tokens) in found:
            raise UsageError(f"--buckets {text!r}: {part!r} is no further length such as 4096:64")
        found[int(tokens)] = int(batch) if colon else None
    return list(found.items())


def run(options: argparse.Namespace) -> int:
    if not options.source.startswith("hf:"):
        raise UsageError("--buckets traces several lengths, for which it needs an hf: source")
    if options.front:
        raise UsageError("--buckets makes plans of its own: ask for the --front of one length")
    start = time.perf_counter()
    buckets = [_bucket(options, *pair) for pair in parse_buckets(options.buckets)]
    switches = {
        (a.tokens, b.tokens): received(a.table, b.table, b.plan.optimizer)
        for a, b in permutations(buckets, 2)
    }
    for bucket in buckets if options.output else ():
        path = Path(options.output)
        path = path.with_name(f"{path.stem}.{bucket.tokens}{path.suffix}")
        files.write(path, bucket.plan, "plait/plan")
        note(f"wrote {path}")
    if options.json:
        show(
            {
                "buckets": [{"tokens": b.tokens} | plan_json(b.plan, {}) for b in buckets],
                "switches": [_row(*key, value) for key, value in switches.items()],
            }
        )
    else:
        print("\n".join([*_plans(buckets), *_switches(switches)]))
        note(f"planned in {time.perf_counter() - start:.1f} s")
    return 0 if all(b.plan.complete for b in buckets) else TIME_LIMIT


def _bucket(options: argparse.Namespace, tokens: int, batch: int | None) -> Bucket:
    from ...codegen.table import plan_table
    from ...planner import plan as search
    from ..python import question

    own = argparse.Namespace(**vars(options))
    own.seq, own.global_batch = tokens, batch or options.global_batch
    own.batch = options.batch or own.global_batch
    model, cluster = subject(own)
    if not isinstance(cluster, Cluster):
        raise UsageError("--buckets plans for clusters of one kind of device")
    model, how = question(model, None, cluster.devices, **asked(own))
    made = replace(search(model, cluster, how), source=source_text(own))
    return Bucket(tokens, made, plan_table(made, model))


def _row(old: int, new: int, found: Received) -> dict[str, Any]:
    worst = found.worst_rank
    return {
        "from": old,
        "to": new,
        "parameter_bytes": sum(found.parameters),
        "optimizer_bytes": sum(found.optimizer),
        "worst_rank": worst,
        "worst_rank_bytes": found.by_rank[worst],
        "bytes_by_rank": found.by_rank,
    }


def _plans(buckets: list[Bucket]) -> Iterator[str]:
    from ...ir.text.printer import gib, seconds

    yield f"{'tokens':>8}{'batch':>8}{'step':>10}{'tokens/s':>12}{'peak':>12}  strategy"
    for tokens, plan, _ in buckets:
        p = plan.prediction
        yield (
            f"{tokens:>8}{plan.global_batch:>8}{seconds(p.step_seconds):>10}"
            f"{p.tokens_per_second:>12.4g}{gib(plan.peak_bytes):>12}  {plan.word}, "
            f"{plan.micro_batches} micro-batches"
        )


def _switches(switches: dict[tuple[int, int], Received]) -> Iterator[str]:
    from ...ir.text.printer import size

    yield f"\n{'switch':<18}{'parameters':>12}{'optimizer':>12}{'worst rank':>12}"
    for (old, new), found in switches.items():
        worst = found.worst_rank
        yield (
            f"{f'{old} to {new}':<18}{size(sum(found.parameters)):>12}"
            f"{size(sum(found.optimizer)):>12}{size(found.by_rank[worst]):>12}  (rank {worst})"
        )
