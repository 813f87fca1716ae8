"""CPU seconds until a first plan that fits: `python benchmarks/first_plan.py [CONFIG.json …]`.

Each argument is a transformers config file (default: those in `examples/configs`), traced in bfloat16
and planned for the cluster and the batch of its report where that names them, else for a batch of 64
on 64 H100; with all their memory and with 4 GiB. The first also has 1,000 layers. `space` is what a
search needs in front of its first price, `first` what the plan took from there, `prices` the
candidates that were priced until then.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from msgspec.structs import replace

from plait.api.formats.model_source import ModelSource
from plait.cost_model.hardware import load_cluster
from plait.ir.model.model import Model
from plait.planner import PlanOptions
from plait.planner.search.driver import SearchSpace
from plait.planner.search.first_plan import first_fitting


class Question(NamedTuple):
    """A cluster, samples of a step and tokens of a sample."""

    cluster: str
    batch: int
    tokens: int


USUAL, PRECISION, LAYERS = Question("8x8xh100", 64, 512), "bf16", 1000
REPORTED = {  # arXiv 2412.19437, 2407.21783; Mixtral's does not say: as docs/results/real_sizes.md
    "deepseek-v3": Question("256x8xh100", 15360, 4096),
    "llama3.1-405b": Question("2048x8xh100", 2048, 8192),
    "mixtral-8x7b": Question("16x8xh100", 256, 4096),
}
BUDGETS = {"80 GB": None, "4 GiB": 4 << 30}
CONFIGS = Path(__file__).resolve().parent.parent / "examples" / "configs"
HEADER = (
    f"{'model':<24}{'devices':>8}  {'budget':<8}{'prices':>7}{'space':>8}{'first':>8}  plan"
    "      (CPU seconds)"
)


def traced(config: Path, question: Question) -> Model:
    source = ModelSource(f"hf:{config}", batch=2, seq=question.tokens)
    return source.load(question.batch, PRECISION)


def deep(model: Model) -> Model:
    """A model with 1,000 layers: the last call of its most frequent function again and again, each with
    parameters of its own, as a trace of so many layers would have it."""
    frequent, count = Counter(call.function for call in model.calls).most_common(1)[0]
    at = max(n for n, call in enumerate(model.calls) if call.function == frequent)
    last, before = model.calls[at], set(model.calls[at - 1].results)
    (entering,) = (name for name in last.arguments if name in before)
    (leaving,) = last.results
    states = {p.name: p for p in model.parameters}
    calls, parameters, value = list(model.calls[:at]), list(model.parameters), entering
    for number in range(LAYERS - count):
        copies = {name: f"{name}.{number}" for name in last.parameters}
        result = f"{leaving}.{number}"
        names = tuple(value if name == entering else name for name in last.arguments)
        calls.append(
            replace(last, parameters=tuple(copies.values()), arguments=names, results=(result,))
        )
        parameters += (replace(states[old], name=new, aliases=()) for old, new in copies.items())
        value = result
    names = tuple(value if name == entering else name for name in last.arguments)
    calls += [replace(last, arguments=names), *model.calls[at + 1 :]]
    return replace(
        model, name=f"{model.name}-{LAYERS}", calls=tuple(calls), parameters=tuple(parameters)
    )


def rows(name: str, model: Model, question: Question) -> Iterator[str]:
    cluster = load_cluster(question.cluster)
    for budget, memory_bytes in BUDGETS.items():
        start = time.process_time()
        options = PlanOptions(memory_bytes=memory_bytes, precision=PRECISION)
        space = SearchSpace.create(model, cluster, options)
        created = time.process_time()
        with mock.patch.object(space.pricer, "assemble", wraps=space.pricer.assemble) as assemble:
            first = first_fitting(space)
        seconds = time.process_time() - created
        text = (
            f"{first.strategy_text}, {first.micro_batches} micro-batches, {first.memory_text}"
            if first
            else "none of the smallest fits"
        )
        counted = f"{assemble.call_count:>7}{created - start:>8.2f}{seconds:>8.2f}"
        yield f"{name:<24}{cluster.devices:>8}  {budget:<8}{counted}  {text}"


def main(configs: list[Path]) -> None:
    print(HEADER)
    for number, config in enumerate(configs):
        question = REPORTED.get(config.stem, USUAL)
        model = traced(config, question)
        models = {config.stem: model}
        if number == 0:
            models[f"{config.stem}, {LAYERS} layers"] = deep(model)
        for name, one in models.items():
            for row in rows(name, one, question):
                print(row, flush=True)


if __name__ == "__main__":
    main([Path(a) for a in sys.argv[1:]] or sorted(CONFIGS.glob("*.json")))
