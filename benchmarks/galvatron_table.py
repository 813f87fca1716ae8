"""Galvatron's table under our prices: `python benchmarks/galvatron_table.py [--models …] [--gib …]`.

BERT-Huge, ViT-Huge, T5-Large and Swin-Huge in float32 with Adam on eight RTX TITAN with 8, 12, 16 or
20 GiB each, 16 of them (100 Gbit/s between nodes) and 64 A100 (`--cluster`). Every row has the most
samples/s over batches of the search, of every pure strategy, of DeepSpeed-3D (two or more ranks of each
kind), and of Galvatron's own plan, priced by one cost model; `predicted` is what Galvatron's artifact
says of its plan (`rivals/galvatron_2022`). Between the eight devices lies what the artifact measured:
4.87 GB/s, the same for near and far.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import transformers
from msgspec.structs import replace

from plait.benchmarks.accuracy import table
from plait.benchmarks.rivals.galvatron_2022 import LINK_MS, Plan2022, Strategy2022, search
from plait.benchmarks.rivals.galvatron_2022 import MODELS as PROFILES
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.devices.cluster import Cluster, Link
from plait.ir.errors import PlaitError
from plait.ir.lowering.rescale import rescale
from plait.ir.model.model import Model
from plait.ir.plan.memory_action import KEEP
from plait.ir.plan.plan import Plan
from plait.ir.plan.strategy import Strategy
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import Pin
from plait.planner.search.baselines import baseline_plan, parse_baselines
from plait.planner.search.driver import SearchSpace

BUDGETS = (8, 12, 16, 20)
SAMPLES = (8, 16, 32, 64, 128)
PURE = {"dp": "ddp", "sdp": "fsdp", "tp": "word:tp={0}", "pp": "word:pp={0}"}
SEVERAL = {8: "word:pp=2,dp=2,tp=2", 16: "word:pp=2,dp=4,tp=2", 64: "word:pp=4,dp=4,tp=4"}
CLUSTERS = {"8xrtx-titan": 8, "2x8xrtx-titan": 16, "8x8xa100-40": 64}
NUMBERED = re.compile(r"\.\d+$")
NETWORK_GBIT = 100.0 / 8  # of a device, where eight share one port


class Row(NamedTuple):
    """Samples/s of a model under a budget, 0 where nothing fits; `galvatron`: its plan at our prices,
    None where it has no calls of ours; `over`: that plan takes more memory here than the budget."""

    model: str
    cluster: str
    gib: int
    ours: float
    pure: dict[str, float]
    several: float
    galvatron: float | None = None
    over: bool = False
    predicted: float | None = None
    strategy: str = ""

    @property
    def over_pure(self) -> float | None:
        """How much faster than the best pure strategy that fits, as a fraction."""
        best = max(self.pure.values())
        return self.ours / best - 1 if best else None

    @property
    def over_several(self) -> float | None:
        return self.ours / self.several - 1 if self.several else None


def bert_huge() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.BertConfig(
        hidden_size=1280, num_hidden_layers=32, num_attention_heads=20, intermediate_size=5120
    )
    return transformers.BertForMaskedLM(config), _tokens()


def vit_huge() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.ViTConfig(
        hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, intermediate_size=5120
    )
    config.num_labels = 1000
    return transformers.ViTForImageClassification(config), _pictures()


def t5_large() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.T5Config(
        d_model=1024, d_ff=4096, num_layers=24, num_decoder_layers=24, num_heads=16
    )
    config.decoder_start_token_id = 0
    return transformers.T5ForConditionalGeneration(config), _tokens()


def swin_huge() -> tuple[Any, dict[str, torch.Tensor]]:
    config = transformers.SwinConfig(
        embed_dim=320, depths=[2, 2, 26, 2], num_heads=[10, 20, 40, 80], window_size=7
    )
    config.num_labels = 1000
    return transformers.SwinForImageClassification(config), _pictures()


FACTORIES: dict[str, Callable[[], tuple[Any, dict[str, torch.Tensor]]]] = {
    "bert-huge": bert_huge,
    "vit-huge": vit_huge,
    "t5-large": t5_large,
    "swin-huge": swin_huge,
}


def _tokens() -> dict[str, torch.Tensor]:
    ids = torch.zeros(8, 512, dtype=torch.long)
    return {"input_ids": ids, "labels": ids}


def _pictures() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.zeros(8, 3, 224, 224), "labels": torch.zeros(8, dtype=torch.long)}


@cache
def traced(name: str) -> Model:
    with torch.device("meta"):
        module, batch = FACTORIES[name]()
    return trace(module, batch, name=name)


def cluster_named(name: str) -> Cluster:
    """The paper's clusters; the eight devices of a node have the link that the artifact measured."""
    if "titan" not in name:
        return load_cluster(f"{name}@{NETWORK_GBIT}")
    preset = load_cluster("8xrtx-titan")
    source = "measured by Galvatron's artifact"
    bus = Link("pcie", 8, 8e-6, 2**20 / (LINK_MS[1, 8, None] * 1e-3), source=source)
    nodes = CLUSTERS[name] // 8
    network = Link("network", nodes, 8e-6, NETWORK_GBIT / 8 * 1e9, source="100 Gbit/s of a node")
    return replace(preset, name=name, levels=(network, bus) if nodes > 1 else (bus,))


def throughput(made: Plan | None) -> float:
    """Samples/s of a plan, 0 where there is none or it does not fit."""
    if made is None or made.peak_bytes > made.memory_limit_bytes:
        return 0.0
    return made.global_batch / made.prediction.step_seconds


def planned(model: Model, cluster: Cluster, options: PlanOptions) -> Plan | None:
    try:
        return plan(model, cluster, options)
    except PlaitError:
        return None


def row(name: str, cluster_name: str, gib: int, samples: Sequence[int] = SAMPLES) -> Row:
    """One row of the table."""
    cluster, options = cluster_named(cluster_name), PlanOptions(memory_bytes=gib << 30)
    names = {k: text.format(cluster.devices) for k, text in PURE.items()}
    names["several"] = SEVERAL[cluster.devices]
    best, fastest = dict.fromkeys(("ours", *names), 0.0), ""
    for count in samples:
        model = rescale(traced(name), count * cluster.devices // 8)
        answer = planned(model, cluster, options)
        if answer and throughput(answer) > best["ours"]:
            best["ours"], fastest = throughput(answer), answer.strategy_text
        space = SearchSpace.create(model, cluster, options)
        for kind, text in names.items():
            (baseline,) = parse_baselines(text, cluster)
            best[kind] = max(best[kind], throughput(baseline_plan(space, baseline)))
    ours, several = best.pop("ours"), best.pop("several")
    table_row = Row(name, cluster_name, gib, ours, best, several, strategy=fastest)
    return _with_galvatron(table_row, cluster) if cluster.devices == 8 else table_row


def _with_galvatron(row: Row, cluster: Cluster) -> Row:
    """The row with Galvatron's own plan, where its layers are calls of ours."""
    theirs = search(row.model, row.gib)
    if theirs is None:
        return row
    model = rescale(traced(row.model), theirs.samples)
    options = galvatron_options(theirs, model)
    priced = planned(model, cluster, options) if options else None
    return row._replace(
        predicted=theirs.throughput,
        galvatron=theirs.samples / priced.prediction.step_seconds if priced else None,
        over=priced is not None and priced.peak_bytes > row.gib << 30,
    )


def galvatron_options(theirs: Plan2022, model: Model) -> PlanOptions | None:
    """Galvatron's plan as pins, stages and micro-batches of our planner, under no memory limit; None
    where our model is not cut into its layers."""
    once = model.batch_only_calls()
    layers = [i for i, c in enumerate(model.calls) if i not in once and NUMBERED.search(c.path)]
    strategies = [s for stage in theirs.stages for s in stage]
    if len(layers) != len(strategies):
        return None
    stages = len(theirs.stages)
    ends = Strategy(tuple(a for a in (("pp", stages), ("dp", 8 // stages)) if a[1] > 1))
    pins = [Pin("*", ends, KEEP)]
    pins += [
        Pin(model.calls[i].path, _strategy(s), KEEP)
        for i, s in zip(layers, strategies, strict=True)
    ]
    firsts, at = [0], 0
    for stage in theirs.stages[:-1]:
        at += len(stage)
        firsts.append(layers[at])
    rounds = max(1, round(theirs.micro_batches)) if stages > 1 else 1
    while theirs.samples // (8 // stages) % rounds:
        rounds -= 1
    return PlanOptions(
        memory_bytes=1 << 50,
        pins=tuple(pins),
        bounds=(*firsts, len(model.calls)),
        micro_batches=rounds,
        schedule="gpipe" if stages > 1 and rounds > 1 else "auto",
        memory_actions=("keep",),
    )


def _strategy(theirs: Strategy2022) -> Strategy:
    data = ("zero3" if theirs.sharded else "dp", theirs.data)
    inside = (data, ("tp", theirs.tensor))
    axes = (("pp", theirs.stages), *(inside[::-1] if theirs.near is False else inside))
    return Strategy(tuple(axis for axis in axes if axis[1] > 1))


def rows(models: Sequence[str], clusters: Sequence[str], budgets: Sequence[int]) -> Iterator[Row]:
    for cluster in clusters:
        for name in models:
            for gib in budgets:
                yield row(name, cluster, gib)


def cells(row: Row) -> list[str]:
    def of(number: float | None) -> str:
        return "" if number is None else f"{number:.2f}" if number else "none fits"

    def more(share: float | None) -> str:
        return "" if share is None else f"{share:+.0%}"

    galvatron = of(row.galvatron) + (" (over)" if row.over else "")
    numbers = [row.ours, *row.pure.values(), row.several]
    head = [row.model, row.cluster, str(row.gib), *map(of, numbers), galvatron]
    tail = [of(row.predicted), more(row.over_pure), more(row.over_several), row.strategy]
    return head + tail


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(PROFILES), choices=list(PROFILES))
    parser.add_argument("--gib", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--cluster", nargs="*", default=["8xrtx-titan"], choices=list(CLUSTERS))
    options = parser.parse_args(arguments)
    head = ["model", "cluster", "GiB", "ours", *PURE, "DeepSpeed-3D", "Galvatron's plan"]
    head += ["predicted", "over pure", "over 3D", "plan"]
    lines = list[list[str]]()
    for one in rows(options.models, options.cluster, options.gib):
        lines.append(cells(one))
        print(" ".join(filter(None, lines[-1])), file=sys.stderr, flush=True)
    print("samples/s", table(head, lines), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
