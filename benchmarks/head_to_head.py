"""Plait's programs against torch's own engines, rounds alternating.

    python benchmarks/head_to_head.py [--ranks 1,2,4] [--models gpt2,llama] [--strategies dp,zero3]
        [--rounds 7] [--compile no,yes] [--json] [--rows ROWS.jsonl] [-o docs/results/head_to_head.md]

The same module (`benchmarks/peers/models.py`), batch and optimizer on gloo ranks of this machine. A
ratio is ours over the peer's, below 1 where Plait is faster or smaller: of the wall time between
barriers and of the processor time of all ranks, medians over rounds of two steps next to each other;
and of the most resident memory that any rank adds for the engine in steps after the first.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from plait.benchmarks.peers.engines import MICRO_BATCHES, PEER_OF, Job
from plait.benchmarks.peers.models import MODELS, build
from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.model.model import Model
from plait.ir.plan.program import Kernels
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.launch.launch import launch

WORKER = str(Path(__file__).parent / "peers/worker.py")
HEAD = "# Head to head\n\n"


class Row(NamedTuple):
    """Ratios of one job; `failed` says why the peer, or ours, could not run it."""

    model: str
    ranks: int
    ours: str
    peer: str
    compiled: bool
    ratio_wall: float | None = None
    ratio_cpu: float | None = None
    ratio_memory: float | None = None
    seconds: float | None = None
    failed: str = ""


def jobs_of(
    models: Sequence[str], ranks: int, strategies: Sequence[str], compiled: Sequence[bool]
) -> Iterator[Job]:
    """The comparisons on this number of ranks, without their programs."""
    roles = [role for role in strategies if ranks > 1]
    for model in models:
        for flag in compiled:
            if ranks == 1:
                yield Job(model, 1, "dp=1", "eager", flag, "")
            for role in roles:
                yield Job(model, ranks, f"{role}={ranks}", PEER_OF[role], flag, "")


def with_program(job: Job, model: Model, folder: Path) -> Job:
    """The job with its program, planned as it says and nothing else: all activations stay."""
    place = folder / f"{job.model}_{job.strategy.replace('=', '_')}_{job.compiled:d}"
    options = PlanOptions(
        pins=pin_all(job.strategy),
        micro_batches=MICRO_BATCHES if job.strategy.startswith("pp") else 1,
        memory_actions=("keep",),
        schedule="1f1b",
    )
    planned = plan(model, load_cluster(f"local:{job.ranks}"), options)
    kernels: Kernels = "inductor" if job.compiled else "aten"
    write_program(compile_program(planned, model, kernels=kernels), place)
    return job._replace(folder=str(place))


def measured(jobs: Sequence[Job], rounds: int, folder: Path) -> list[dict[str, Any]]:
    """What the ranks of jobs of equal numbers of ranks wrote, a row a job."""
    todo, rows = folder / "jobs.json", folder / "rows.json"
    todo.write_text(json.dumps({"rounds": rounds, "jobs": [job._asdict() for job in jobs]}))
    rows.write_text("")
    launch(jobs[0].ranks, [WORKER, str(todo), str(rows)], timeout_seconds=3600)
    return [json.loads(line) for line in rows.read_text().splitlines()]


def row_of(job: dict[str, Any]) -> Row:
    about = Row(job["model"], job["ranks"], job["strategy"], job["peer"], job["compiled"])
    if "failed" in job:
        return about._replace(failed=job["failed"])
    wall, cpu = (median(ours[i] / peer[i] for ours, peer in job["rounds"]) for i in range(2))
    ours, peer = job["peak_bytes"]
    return about._replace(
        ratio_wall=round(wall, 3),
        ratio_cpu=round(cpu, 3),
        ratio_memory=round(ours / peer, 3),
        seconds=round(median(peer[0] for _, peer in job["rounds"]), 3),
    )


def joined(file: Path, rows: Sequence[Row]) -> list[Row]:
    """Rows of a file and these, which replace older ones of the same comparison; all are in the file
    afterwards, in order."""
    lines = file.read_text().splitlines() if file.exists() else []
    known = {row[:5]: row for row in (*(Row(**json.loads(line)) for line in lines), *rows)}
    ordered = sorted(known.values(), key=lambda row: (row.compiled, row.ranks, row.model))
    file.write_text("".join(json.dumps(row._asdict()) + "\n" for row in ordered))
    return ordered


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line of markdown per row."""
    yield "| model | ranks | Plait | peer | compiled | wall | CPU | memory | peer's step |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        ratios = [row.ratio_wall, row.ratio_cpu, row.ratio_memory]
        shown = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        last = row.failed or f"{row.seconds:.2f} s"
        compiled = "yes" if row.compiled else "no"
        cells = [row.model, str(row.ranks), row.ours, row.peer, compiled, *shown, last]
        yield f"| {' | '.join(cells)} |"


def document(rows: Sequence[Row]) -> str:
    assert __doc__ is not None
    text = "\n".join(line.removeprefix("    ") for line in __doc__.splitlines()[4:])
    command = "    python benchmarks/head_to_head.py -o docs/results/head_to_head.md"
    return f"{HEAD}{text.strip()}\n\n{command}\n\n" + "\n".join(table(rows)) + "\n"


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--ranks", default="1,2,4")
    arguments.add_argument("--models", default=",".join(MODELS))
    arguments.add_argument("--strategies", default=",".join(PEER_OF))
    arguments.add_argument("--compile", default="no,yes", help="no, yes or both")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--json", action="store_true", help="print rows as JSON")
    arguments.add_argument("--rows", help="a file of rows: those of earlier runs join the table")
    arguments.add_argument("-o", "--output", help="write the table to this file")
    return arguments


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    models = options.models.split(",")
    compiled = [flag == "yes" for flag in options.compile.split(",")]
    traced = {name: trace(*build(name)) for name in models}
    rows: list[Row] = []
    for ranks in map(int, options.ranks.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            jobs = [
                with_program(job, traced[job.model], place)
                for job in jobs_of(models, ranks, options.strategies.split(","), compiled)
            ]
            rows += map(row_of, measured(jobs, options.rounds, place))
    if options.rows:
        rows = joined(Path(options.rows), rows)
    for row in rows:
        if options.json:
            print(json.dumps(row._asdict()))
    if not options.json:
        print("\n".join(table(rows)))
    if options.output:
        Path(options.output).write_text(document(rows))
    slower = [row for row in rows if any((ratio or 0.0) > 1.0 for ratio in row[5:8])]
    return int(bool(slower) or any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
