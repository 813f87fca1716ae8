"""Peaks of random models under random plans: `python -m plait.tests.faults.peaks --models 40`.

No program may have more bytes of live tensors on any rank than its plan promises.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from plait.benchmarks import peak
from plait.ir.plan.plan import Plan

STRATEGIES = (
    "dp=1",
    "dp=2",
    "zero1=2",
    "zero2=2",
    "zero3=2",
    "zero3=2@1/2",
    "tp=2",
    "pp=2",
    "pp=2,zero1=2",
    "pp=2,zero2=2",
    "pp=2,zero3=2",
    "pp=2,tp=2",
    "dp=2,tp=2",
    "zero3=2,tp=2",
)
ACTIONS = ("keep", "save 25%", "save 50%", "recompute", "offload", "offload 50%", "split 2")
OPTIMIZERS = ("adamw", "adam", "sgd", "momentum", "rmsprop", "adagrad", "radam", "decayed adam")


def variants(seed: int, count: int) -> list[peak.Variant]:
    """Random ways to run the model of a seed."""
    rng = random.Random(-seed - 1)
    return [
        peak.Variant(
            rng.choice(STRATEGIES),
            rng.choice((1, 2, 4)),
            rng.choice(ACTIONS),
            rng.choice(OPTIMIZERS),
        )
        for _ in range(count)
    ]


def programs(models: int, plans: int, first: int, folder: Path) -> Iterator[tuple[peak.Job, Plan]]:
    """Programs of random models, each under several plans."""
    for seed in range(first, first + models):
        yield from peak.compiled(f"random:{seed}", variants(seed, plans), folder)


def peak_rows(models: int, plans: int, first: int, folder: Path) -> list[peak.Row]:
    """Every stage's promise against what its fullest rank had."""
    return list(peak.measured(list(programs(models, plans, first, folder)), folder))


def summary(rows: list[peak.Row]) -> str:
    slacks = [row.slack for row in rows]
    return (
        f"{len({row.job.folder for row in rows})} programs, {len(rows)} stages: "
        f"{sum(s < 0 for s in slacks)} above their promise (worst {-min(slacks):.1%}), "
        f"slack median {median(slacks):.1%}, most {max(slacks):.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--plans", type=int, default=3, help="of every model")
    parser.add_argument("--first", type=int, default=0, help="seed of the first model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plait-peaks-") as folder:
        rows = peak_rows(options.models, options.plans, options.first, Path(folder))
    for row in rows:
        if row.slack < 0:
            print(peak.show(row))
    print(summary(rows))


if __name__ == "__main__":
    main()
