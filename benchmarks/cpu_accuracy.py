"""Predicted against measured steps on this machine: `python benchmarks/cpu_accuracy.py`.

Measures the machine with 1, 2 and 4 ranks (or takes `--cluster FILE`, one for each number of ranks),
compiles programs of small models, runs them in turn on gloo ranks, and compares their steps with the
predictions. What others do on the machine makes steps longer, so two bounds of an undisturbed step are
shown: the least that the clock saw (`clock`, too long on a busy machine), and the seconds that the ranks
were given, over the processors that they can use (`given`, too short where ranks wait with no other to
run). The planner's pick is the program of least predicted step; what it loses is its step over that of
the fastest program of the same model and ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import plait
from plait.api.commands.calibrate import measured
from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import materialize, trace
from plait.ir.devices.cluster import Cluster
from plait.ir.model.model import Model
from plait.runtime.launch.launch import launch
from plait.runtime.launch.scratch import scratch_folder

HERE = Path(__file__).resolve().parent
MODELS = ("llama", "gpt2", "mlp")
# fmt: off
STRATEGIES = {
    1: ("dp=1",),
    2: ("dp=2", "tp=2"),
    4: ("dp=4", "zero1=4", "zero3=4", "tp=4", "zero2=2,tp=2", "dp=2,tp=2,sp", "pp=2,dp=2", "pp=4"),
}
# fmt: on
PIPELINE_MICRO_BATCHES = 4
TIMEOUT_SECONDS = 1200.0


class Result(NamedTuple):
    """One program: its predicted step, and the two bounds of its measured one, in seconds."""

    model: str
    ranks: int
    strategy: str
    predicted: float
    clock: float
    given: float

    def seconds(self, kind: str) -> float:
        return self.clock if kind == "clock" else self.given

    def error(self, kind: str) -> float:
        return self.predicted / self.seconds(kind) - 1

    def __str__(self) -> str:
        return (
            f"{self.model:<7}{self.ranks:>5}  {self.strategy:<14}{self.predicted:>10.3f}"
            f"{self.clock:>8.3f}{self.error('clock'):>+9.1%}"
            f"{self.given:>8.3f}{self.error('given'):>+9.1%}"
        )


def results(cluster: Cluster, models: Iterable[str], rounds: int) -> Iterator[Result]:
    """Every program for this many ranks, compiled, then run in turn."""
    ranks = cluster.devices
    with scratch_folder("accuracy") as scratch:
        predicted, jobs = {}, []
        for name in models:
            source = f"{HERE / 'cpu_models.py'}:{name}"
            made = materialize(source, seed=0)
            model = trace(made.model, made.batch)
            for strategy in STRATEGIES[ranks]:
                folder = scratch / f"program{len(jobs)}"
                seconds = compiled(model, cluster, strategy, folder)
                if seconds is not None:
                    key = f"{name} {strategy}"
                    predicted[key] = seconds
                    jobs.append({"name": key, "source": source, "folder": str(folder)})
        todo, times = Path(scratch, "jobs.json"), Path(scratch, "times.json")
        todo.write_text(json.dumps({"programs": jobs, "rounds": rounds}))
        target = [str(HERE / "cpu_worker.py"), str(todo), str(times)]
        launch(ranks, target, timeout_seconds=TIMEOUT_SECONDS)
        for key, steps in json.loads(times.read_text()).items():
            name, strategy = key.split(" ")
            clock, given = (min(column) for column in zip(*steps, strict=True))
            yield Result(
                name, ranks, strategy, predicted[key], clock, given / min(ranks, processors())
            )


def compiled(model: Model, cluster: Cluster, strategy: str, folder: Path) -> float | None:
    """Predicted seconds of the program written to `folder`; None where a word does not fit a model."""
    times = PIPELINE_MICRO_BATCHES if "pp=" in strategy else 1
    try:
        plan = plait.plan(model, cluster=cluster, pin=strategy, micro_batches=times)
    except plait.PlaitError as error:
        print(f"left out: {model.name} {strategy}: {error}", file=sys.stderr)
        return None
    write_program(compile_program(plan, model), folder)
    return plan.prediction.step_seconds


def processors() -> int:
    return len(os.sched_getaffinity(0))


def report(measured: list[Result]) -> Iterator[str]:
    """The table; by each bound the error over all, and the pick per model and number of ranks."""
    yield "model  ranks  strategy       predicted   clock    error   given    error"
    yield from map(str, measured)
    groups: dict[tuple[str, int], list[Result]] = defaultdict(list)
    for result in measured:
        groups[result.model, result.ranks].append(result)
    for kind in ("clock", "given"):
        error = median(abs(r.error(kind)) for r in measured)
        yield f"median absolute error by {kind} {error:.1%} of {len(measured)} programs"
        for (name, ranks), members in groups.items():
            if len(members) > 1:
                pick = min(members, key=lambda r: r.predicted)
                best = min(members, key=lambda r: r.seconds(kind))
                lost = pick.seconds(kind) / best.seconds(kind) - 1
                yield f"  {name}, {ranks} ranks: {pick.strategy} loses {lost:.1%} on {best.strategy}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--cluster",
        action="append",
        default=[],
        metavar="FILE",
        help="a machine.toml per number of ranks; default: measure",
    )
    parser.add_argument("--model", action="append", choices=MODELS, help="default: all")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each program")
    options = parser.parse_args()
    clusters = [load_cluster(file) for file in options.cluster]
    clusters = clusters or [measured(ranks, True, f"local{ranks}") for ranks in STRATEGIES]
    found = [r for c in clusters for r in results(c, options.model or MODELS, options.rounds)]
    print("\n".join(report(found)))


if __name__ == "__main__":
    main()
