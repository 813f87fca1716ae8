"""Every model × strategy on PyTorch's own engine against one process, in float64 on gloo ranks.

    python benchmarks/torch_engine.py [--ranks 2,4] [--models llama,bert,...] [-o docs/torch_engine.md]

`plait.apply` changes each model in place; the judge is the eager module with the same SGD. A cell is
the largest relative difference of losses and parameters after three steps, or why it is refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from plait.api.plans.plan_object import with_methods
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.ir.errors import PlaitError
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.launch.launch import LaunchError
from plait.tests.ranks import launch

MODELS = (
    "decoders:llama", "decoders:mistral", "decoders:qwen2", "decoders:qwen3", "decoders:gemma2",
    "decoders:gpt2", "decoders:opt", "encoders:bert", "encoders:roberta", "vision:vit",
)  # fmt: skip
STRATEGIES = {
    2: ("dp=2", "zero1=2", "zero2=2", "zero3=2", "tp=2"),
    4: ("dp=4", "zero3=4", "dp=2,zero3=2", "dp=2,zero2=2", "dp=2,tp=2", "zero3=2,tp=2", "tp=4"),
}
WORKER = str(Path(__file__).parents[1] / "tests/runtime/torch_engine/worker.py")
BOUND = 1e-9


def rows(models: list[str], ranks: int) -> Iterator[tuple[str, str, str]]:
    """Model, strategy, and the difference or the reason."""
    for name in models:
        source = f"plait.tests.zoo.{name}"
        built = load_source(source)
        model = trace(built.model.eval(), built.batch, built.loss_fn)
        for strategy in STRATEGIES[ranks]:
            yield name.split(":")[1], strategy, cell(source, model, strategy, ranks)


def cell(source: str, model: object, strategy: str, ranks: int) -> str:
    options = PlanOptions(engine="torch", pins=pin_all(strategy), micro_batches=1)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "plan.json")
        try:
            with_methods(plan(model, load_cluster(f"local:{ranks}"), options)).save(path)
            printed = launch(ranks, [WORKER, source, path], timeout_seconds=300)
        except (PlaitError, LaunchError) as error:
            return str(error).strip().splitlines()[-1][:120]
    return printed[0].split()[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("-o", "--output")
    arguments = parser.parse_args()
    lines = ["| model | ranks | strategy | largest difference |", "|---|---|---|---|"]
    for ranks in map(int, arguments.ranks.split(",")):
        for model, strategy, result in rows(arguments.models.split(","), ranks):
            lines.append(f"| {model} | {ranks} | {strategy} | {result} |")
            print(lines[-1], flush=True)
    if arguments.output:
        Path(arguments.output).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
