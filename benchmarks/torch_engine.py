"""Every model × strategy on PyTorch's own engine against one process, in float64 on gloo ranks.

    python benchmarks/torch_engine.py [--ranks 2,4] [--models llama,bert,...]
        [-o docs/results/torch_engine.md]

A strategy may name its schedule. `plait.apply` changes each model in place; the judge is the eager
module with the same SGD, then the same AdamW. A cell is the largest relative difference of losses and
parameters after three and two steps, or why it is refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from plait.api.plans.plan_object import with_methods
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.ir.errors import PlaitError
from plait.ir.model.model import Model
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.launch.launch import LaunchError
from plait.tests.ranks import launch

MODELS = (
    "decoders:llama", "decoders:qwen3", "decoders:gpt2", "decoders:opt", "encoders:bert",
    "encoders:roberta", "vision:vit", "decoders:phi", "encoders:distilbert", "decoders:olmo2",
)  # fmt: skip
STRATEGIES = {
    2: ("dp=2", "zero1=2", "zero2=2", "zero3=2", "tp=2", "tp=2,sp", "pp=2"),
    4: ("dp=2,zero3=2", "zero3=2,tp=2", "pp=2,zero2=2", "pp=2,zero3=2 1f1b", "pp=2,tp=2"),
}
FIRST_MODEL = {  # what the first model shows beside these
    2: ("pp=2 zb-h1", "pp=2 zbv", "pp=2 dualpipev", "pp=2 interleaved", "cp=2"),
    4: (
        "tp=4",
        "pp=4",
        "pp=2,zero3=2 gpipe",
        "pp=2,zero3=2 interleaved",
        "pp=2,zero3=2 zb-h1",
        "pp=2,dp=2 zb-h1",
        "pp=2,tp=2 zbv",
        "pp=2,tp=2 interleaved",
        "pp=2,tp=2,sp",
    ),
}
WORKER = str(Path(__file__).parents[1] / "tests/runtime/torch_engine/worker.py")
HEAD = (
    "# PyTorch's own engine against one process",
    "",
    "`python benchmarks/torch_engine.py -o docs/results/torch_engine.md`: small models with random",
    "weights under `plait.apply`, in float64 on gloo ranks; the judge is the eager module with the same",
    "optimizers on one process. A cell is the largest relative difference of losses and parameters",
    "after three steps of SGD with momentum and two of AdamW, or why the plan is refused.",
    "",
    "| model | ranks | strategy | largest difference |",
    "|---|---|---|---|",
)
MOST = 160  # characters of a reason


def rows(name: str, ranks: int, strategies: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Strategy, and the largest difference or the reason why it is refused."""
    source = f"plait.tests.zoo.{name}"
    built = load_source(source)
    model = trace(built.model.eval(), built.batch, built.loss_fn)
    with tempfile.TemporaryDirectory() as folder:
        results = {s: planned(model, s, ranks, Path(folder)) for s in strategies}
        paths = [str(path) for path in results.values() if isinstance(path, Path)]
        printed = run(ranks, source, paths)
        for strategy, result in results.items():
            yield strategy, result if isinstance(result, str) else printed[str(result)]


def planned(model: Model, strategy: str, ranks: int, folder: Path) -> Path | str:
    """The file of a plan for PyTorch's engine, or why there is none."""
    text, _, schedule = strategy.partition(" ")
    micro_batches = 4 if text.startswith("pp") else 1
    options = PlanOptions(
        engine="torch", pins=pin_all(text), micro_batches=micro_batches, schedule=schedule or "auto"
    )
    path = folder / f"{strategy.replace(' ', '-')}.json"
    try:
        with_methods(plan(model, load_cluster(f"local:{ranks}"), options)).save(path)
    except PlaitError as error:
        return str(error).splitlines()[0][:MOST]
    return path


def run(ranks: int, source: str, paths: list[str]) -> dict[str, str]:
    """What the worker says of every plan; plans after one that fails run in processes of their own."""
    said: dict[str, str] = {}
    try:
        for line in launch(ranks, [WORKER, source, *paths], timeout_seconds=900)[0].splitlines():
            path, _, result = line.partition(" ")
            said[path] = result[:MOST]
    except LaunchError as error:
        if len(paths) == 1:
            return {paths[0]: f"failed: {str(error).strip().splitlines()[-1][:MOST]}"}
        for path in paths:
            said |= run(ranks, source, [path])
    return said


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("-o", "--output")
    arguments = parser.parse_args()
    lines = [*HEAD]
    for ranks in map(int, arguments.ranks.split(",")):
        for model in arguments.models.split(","):
            more = FIRST_MODEL[ranks] if model == MODELS[0] else ()
            for strategy, result in rows(model, ranks, (*STRATEGIES[ranks], *more)):
                lines.append(f"| {model.split(':')[1]} | {ranks} | {strategy} | {result} |")
                print(lines[-1], flush=True)
    if arguments.output:
        Path(arguments.output).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
