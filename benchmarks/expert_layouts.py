"""Published layouts of experts beside our own plans: `python benchmarks/expert_layouts.py RUNS.csv`.

Every layout with expert ranks that ran is priced as Megatron runs it, in bf16, and the same model is
planned for the same devices and batch under the same execution model: the layout must fit, and our
plan must not be slower. Rows that differ in nothing that is priced are taken once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from plait.api.predict.architecture import Architecture, read_architecture
from plait.api.predict.assume import assume
from plait.api.predict.deepen import deepen
from plait.api.predict.machine import cluster_of
from plait.api.predict.predictor import Predictor, traced_kinds, traced_layers
from plait.api.predict.run import RunConfig, read_run
from plait.api.predict.table import read_rows
from plait.ir.errors import PlaitError
from plait.ir.plan.plan import Plan
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all

ASKED = PlanOptions(engine="megatron", precision="bf16", optimizer="adamw", headroom=0.0)


class Compared(NamedTuple):
    name: str
    published: Plan
    planned: Plan

    @property
    def line(self) -> str:
        steps = [p.prediction.step_seconds for p in (self.published, self.planned)]
        fits = "" if self.published.fits else "  does not fit"
        return (
            f"{self.name:<28} {self.published.strategy_text:<28} {steps[0]:9.3f} s"
            f"   {self.planned.strategy_text:<28} {steps[1]:9.3f} s   {steps[1] / steps[0]:5.2f}{fits}"
        )


def described_runs(path: Path, most_devices: int) -> Iterator[tuple[str, Architecture, RunConfig]]:
    """Runs with expert ranks on up to so many devices, each layout of a model once."""
    seen: set[tuple[object, ...]] = set()
    for row in read_rows(path):
        if not row.get("experts") or row.get("status") != "ok":
            continue
        try:
            known, _ = assume(row)
            run, architecture = read_run(known), read_architecture(known)
        except PlaitError:
            continue
        key = (architecture, run.layout, run.global_batch, run.micro_batch, run.device)
        if run.layout.experts > 1 and run.devices <= most_devices and key not in seen:
            seen.add(key)
            yield row.get("model", ""), architecture, run


def compare(name: str, architecture: Architecture, run: RunConfig) -> Compared:
    """The plan of a published layout and our own."""
    kinds = architecture.kinds(run.layers)
    traced = traced_kinds(kinds, frozen=False)
    model = Predictor().trace(architecture, tuple(traced), "bfloat16", run.global_batch)
    deep, cluster = deepen(model, traced_layers(kinds, traced)), cluster_of(run)
    pins = pin_all(str(run.layout.strategy))
    published = PlanOptions(
        engine=ASKED.engine,
        precision=ASKED.precision,
        optimizer=ASKED.optimizer,
        headroom=ASKED.headroom,
        pins=pins,
        micro_batches=run.micro_batches,
    )
    return Compared(name, plan(deep, cluster, published), plan(deep, cluster, ASKED))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--devices", type=int, default=64, help="at most, of a run")
    options = parser.parse_args(arguments)
    if not options.runs.is_file():
        print(f"skipped: there is no file {options.runs}")
        return 0
    start, worse, count = time.process_time(), 0, 0
    for name, architecture, run in described_runs(options.runs, options.devices):
        try:
            compared = compare(name, architecture, run)
        except PlaitError as error:
            print(f"{name:<28} {run.layout.strategy}: {str(error).splitlines()[0]}")
            continue
        count += 1
        steps = [p.prediction.step_seconds for p in (compared.published, compared.planned)]
        worse += steps[1] > steps[0] or not compared.published.fits
        print(compared.line, flush=True)
    print(
        f"{count - worse} of {count} fit and are no faster than our plan, "
        f"{time.process_time() - start:.0f} s of processor time"
    )
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
