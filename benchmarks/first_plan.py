"""CPU seconds until a first plan that fits: `python benchmarks/first_plan.py [CONFIG.json …]`.

Each argument is a transformers config file (default: those in `examples/configs`), with a batch of 64
for a cluster of 64 H100, with all their memory and with 4 GiB; one of them also with 1,000 layers.
`prices` counts the candidates that were priced until then.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from plait.api.formats.model_source import ModelSource
from plait.cost_model.hardware import load_cluster
from plait.ir.model.model import Model
from plait.planner import PlanOptions
from plait.planner.search.driver import SearchSpace
from plait.planner.search.first_plan import first_fitting

CLUSTER, BATCH, SEQ, LAYERS = "8x8xh100", 64, 512, 1000
BUDGETS = {"80 GB": None, "4 GiB": 4 << 30}
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers")
CONFIGS = Path(__file__).resolve().parent.parent / "examples" / "configs"
HEADER = f"{'model':<24}{'budget':<8}{'prices':>7}{'space':>8}{'first':>8}  plan      (CPU seconds)"


def traced(config: Path) -> Model:
    return ModelSource(f"hf:{config}", batch=BATCH, seq=SEQ).load()


def deep(configs: list[Path], folder: Path) -> Iterator[Path]:
    """The first model whose file says how many layers it has, with 1,000 of them."""
    for config in configs:
        values = json.loads(config.read_text())
        for key in LAYER_KEYS:
            if key in values:
                path = folder / f"{config.stem}-{LAYERS}-layers.json"
                path.write_text(json.dumps(values | {key: LAYERS}))
                yield path
                return


def rows(name: str, model: Model) -> Iterator[str]:
    for budget, memory_bytes in BUDGETS.items():
        start = time.process_time()
        options = PlanOptions(memory_bytes=memory_bytes)
        space = SearchSpace.create(model, load_cluster(CLUSTER), options)
        created = time.process_time()
        with mock.patch.object(space.pricer, "assemble", wraps=space.pricer.assemble) as assemble:
            first = first_fitting(space)
        seconds = time.process_time() - created
        text = (
            f"{first.strategy_text}, {first.memory_text}" if first else "none of the smallest fits"
        )
        counted = f"{assemble.call_count:>7}{created - start:>8.2f}{seconds:>8.2f}"
        yield f"{name:<24}{budget:<8}{counted}  {text}"


def main(configs: list[Path]) -> None:
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        for config in (*configs, *deep(configs, Path(folder))):
            for row in rows(config.stem, traced(config)):
                print(row, flush=True)


if __name__ == "__main__":
    main([Path(a) for a in sys.argv[1:]] or sorted(CONFIGS.glob("*.json")))
