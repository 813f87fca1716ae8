"""Galvatron's JSON form of a plan: the strategy and the stage of every layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import msgspec

from .galvatron_strategy import GalvatronBatch, GalvatronStrategy


class GalvatronPlan(msgspec.Struct, frozen=True):
    """A plan of equal layers, as Galvatron's runtime takes it.

    `layers`: strategies in model order; `division`: layers per stage; `ends`: strategy of embedding
    and head; `default`: what replicas do without ZeRO-3 (ddp or zero2).
    """

    batch: GalvatronBatch
    layers: tuple[GalvatronStrategy, ...]
    division: tuple[int, ...]
    ends: GalvatronStrategy
    default: str = "zero2"

    def __str__(self) -> str:
        runs = [
            f"{len(list(run))}x[{strategy_text}]"
            for strategy_text, run in groupby(map(str, self.layers))
        ]
        stages = "/".join(map(str, self.division))
        return (
            f"batch {self.batch.samples} in {self.batch.micro_batches}, stages {stages}, "
            f"ends {self.ends}: {' '.join(runs)}"
        )


def to_json(plan: GalvatronPlan) -> str:
    """The JSON that Galvatron's runtime reads."""

    def per_layer(field: Callable[[GalvatronStrategy], int]) -> str:
        return _joined(field(s) for s in plan.layers)

    fields: dict[str, int | str] = {
        "pp_deg": len(plan.division),
        "tp_sizes_enc": per_layer(lambda s: s.ranks),
        "tp_consecutive_flags": per_layer(lambda s: 1),
        "dp_types_enc": per_layer(lambda s: s.zero3),
        "use_sp": per_layer(lambda s: s.ulysses),
        "checkpoint": per_layer(lambda s: s.recompute),
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
    """Parse Galvatron's JSON for a number of devices; raises KeyError for missing fields."""
    fields: dict[str, Any] = json.loads(text)
    stages = int(fields["pp_deg"])
    devices_per_stage = devices // stages

    def strategy(ranks: int, zero3: int, recompute: int, ulysses: int) -> GalvatronStrategy:
        return GalvatronStrategy(
            stages,
            ranks,
            devices_per_stage // ranks,
            bool(zero3),
            bool(recompute),
            bool(ulysses and ranks > 1),
        )

    names = ("tp_sizes_enc", "dp_types_enc", "checkpoint", "use_sp")
    return GalvatronPlan(
        GalvatronBatch(int(fields["global_bsz"]), int(fields["chunks"])),
        tuple(
            strategy(*fields_of_layer)
            for fields_of_layer in zip(*(_split(fields[n]) for n in names), strict=True)
        ),
        tuple(_split(fields["pp_division"])),
        strategy(int(fields["vtp"]), int(fields["embed_sdp"]), 0, int(fields["vsp"])),
        str(fields.get("default_dp_type", "zero2")),
    )


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(str(int(n)) for n in numbers)


def _split(numbers: str) -> list[int]:
    return [int(n) for n in numbers.split(",")]
