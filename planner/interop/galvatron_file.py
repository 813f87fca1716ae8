"""Galvatron's own JSON of a plan, to and from a value: how every layer runs, in which stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import msgspec

from ...benchmarks.rivals.galvatron_costs import Batch
from .galvatron_strategy import GalvatronStrategy


class GalvatronPlan(msgspec.Struct, frozen=True):
    """A plan of equal layers: strategies in model order, layers by stage, embedding and head; what
    replicas do without ZeRO-3 (ddp or zero2)."""

    batch: Batch
    layers: tuple[GalvatronStrategy, ...]
    division: tuple[int, ...]
    ends: GalvatronStrategy
    default: str = "zero2"

    def __str__(self) -> str:
        runs = [f"{len(list(own))}x[{word}]" for word, own in groupby(map(str, self.layers))]
        stages = "/".join(map(str, self.division))
        return (
            f"batch {self.batch.samples} in {self.batch.micro_batches}, stages {stages}, "
            f"ends {self.ends}: {' '.join(runs)}"
        )


def to_json(plan: GalvatronPlan) -> str:
    """A plan as Galvatron's runtime reads it."""

    def every(of: Callable[[GalvatronStrategy], int]) -> str:
        return _joined(of(s) for s in plan.layers)

    fields: dict[str, int | str] = {
        "pp_deg": len(plan.division),
        "tp_sizes_enc": every(lambda s: s.ranks),
        "tp_consecutive_flags": every(lambda s: 1),
        "dp_types_enc": every(lambda s: s.zero3),
        "use_sp": every(lambda s: s.ulysses),
        "checkpoint": every(lambda s: s.recompute),
        "global_bsz": plan.batch.samples,
        "chunks": plan.batch.micro_batches,
        "pp_division": _joined(plan.division),
        "pipeline_type": "pipedream_flush",
        "default_dp_type": plan.default,
        "vtp": plan.ends.ranks,
        "vsp": int(plan.ends.ulysses),
        "embed_sdp": int(plan.ends.zero3),
    }
    return json.dumps(fields, indent=4)


def from_json(text: str, devices: int) -> GalvatronPlan:
    """The plan of a JSON of Galvatron's on so many devices; KeyError for missing fields."""
    fields: dict[str, Any] = json.loads(text)
    stages = int(fields["pp_deg"])
    group = devices // stages

    def split(ranks: int, zero3: int, recompute: int, ulysses: int) -> GalvatronStrategy:
        return GalvatronStrategy(
            stages, ranks, group // ranks, bool(zero3), bool(recompute), bool(ulysses and ranks > 1)
        )

    names = ("tp_sizes_enc", "dp_types_enc", "checkpoint", "use_sp")
    return GalvatronPlan(
        Batch(int(fields["global_bsz"]), int(fields["chunks"])),
        tuple(split(*own) for own in zip(*(_split(fields[n]) for n in names), strict=True)),
        tuple(_split(fields["pp_division"])),
        split(int(fields["vtp"]), int(fields["embed_sdp"]), 0, int(fields["vsp"])),
        str(fields.get("default_dp_type", "zero2")),
    )


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(str(int(n)) for n in numbers)


def _split(numbers: str) -> list[int]:
    return [int(n) for n in numbers.split(",")]
