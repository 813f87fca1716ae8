"""Figures that plans answer: searches, budgets and lengths, priced on the papers' devices."""

from __future__ import annotations

from functools import cache, partial
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from msgspec.structs import replace

from plait.benchmarks import galvatron, galvatron_table, osdp
from plait.benchmarks.rivals.galvatron_costs import GalvatronCosts
from plait.benchmarks.rivals.galvatron_profile import read_cluster, read_model
from plait.benchmarks.rivals.galvatron_search_space import GIB, budget_bytes
from plait.benchmarks.rivals.osdp import best, sharded
from plait.codegen.table import plan_table
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.lowering.cast import in_precision
from plait.ir.lowering.redistribute import redistribution_bytes
from plait.ir.lowering.rescale import rescale
from plait.ir.model.model import Model
from plait.ir.plan.routing import Routing
from plait.planner import PlanOptions
from plait.planner.question.pins import parse_pin, pin_all
from plait.planner.search.driver import SearchSpace

LLAMA_8B = Path(__file__).parents[2] / "examples" / "configs" / "llama3-8b.json"
TIGHT_GIB, ROOMY_GIB = 8, 16
SHORT, LONG = (32, 4096), (1, 131072)  # samples and tokens of one step
FEW = (8, 64)  # samples: one where pipelines are short of micro-batches, one where they are not


@cache
def bert_row(gib: int) -> galvatron_table.Row:
    return galvatron_table.row("bert-huge", "8xrtx-titan", gib, FEW)


def bert_throughput(gib: int) -> float:
    return bert_row(gib).ours


def bert_over_pure(_: Path | None) -> float | None:
    """Percent over the best pure strategy."""
    share = bert_row(TIGHT_GIB).over_pure
    return None if share is None else 100 * share


def bert_over_worst_pure(_: Path | None) -> float | None:
    """Percent over the slowest pure strategy that fits."""
    fits = [t for t in bert_row(ROOMY_GIB).pure.values() if t]
    return 100 * (bert_row(ROOMY_GIB).ours / min(fits) - 1) if fits else None


def bert_over_several(_: Path | None) -> float | None:
    """Percent over two ranks of each kind."""
    share = bert_row(TIGHT_GIB).over_several
    return None if share is None else 100 * share


def bert_over_galvatron(_: Path | None) -> float | None:
    """Percent over Galvatron's own plan."""
    row = bert_row(TIGHT_GIB)
    return 100 * (row.ours / row.galvatron - 1) if row.galvatron else None


def on_galvatrons_costs(data: Path | None) -> float | None:
    """Samples/s of llama2-7b on eight devices of 36 GiB, by Galvatron's cost model."""
    folder = data and data / "galvatron/profiles"
    if folder is None or not folder.is_dir():
        return None
    costs = GalvatronCosts(read_model(folder, *galvatron.MODEL), read_cluster(folder, 1, 8))
    return galvatron.searched(costs, budget_bytes(36 * GIB), 64)[0]


def osdp_gain(_: Path | None) -> float | None:
    """Percent over FSDP where both have eight GB."""
    limits = osdp.setting(load_cluster("8xrtx-titan"), 8.0)
    plain = best(osdp.operators((1,)), limits, sharded)
    split = best(osdp.operators((1, 2, 4)), limits)
    if plain is None or split is None:
        return None
    return 100 * (plain.sample_seconds / split.sample_seconds - 1)


def _layers_of(width: int) -> Model:
    """Two layers of a GPT-2 so wide, of 1,024 words, on eight samples of 512 tokens."""
    config = transformers.GPT2Config(vocab_size=1024, n_embd=width, n_layer=2, n_head=width // 128)
    return _traced(lambda: transformers.GPT2LMHeadModel(config), 8, 512, f"gpt2-{width}")


@cache
def widest(role: str) -> int:
    """The widest layers, in multiples of 512, of which eight devices of 8 GiB train two under a role."""
    pins = (*pin_all("zero3=8"), parse_pin(f"transformer.h.*:{role}=8"))
    options = PlanOptions(memory_bytes=TIGHT_GIB << 30, pins=pins, micro_batches=1)
    fits, too_wide = 4096, 16384
    while too_wide - fits > 512:
        width = (fits + too_wide) // 1024 * 512
        answer = galvatron_table.planned(_layers_of(width), load_cluster("8xrtx-titan"), options)
        fits, too_wide = (width, too_wide) if answer else (fits, width)
    return fits


def slices_gain(_: Path | None) -> float | None:
    """Times as many parameters of a layer where its products gather weights in slices."""
    return (widest("slice") / widest("zero3")) ** 2


@cache
def most_samples(role: str) -> float:
    """Most samples/s of a GPT-2 of 1.5 billion on eight devices of 8 GiB, its layers under a role."""
    config = transformers.GPT2Config(n_embd=1600, n_layer=48, n_head=25)
    model = _traced(lambda: transformers.GPT2LMHeadModel(config), 8, 1024, "gpt2-xl")
    pins = (*pin_all("zero3=8"), parse_pin(f"transformer.h.*:{role}=8"))
    options, cluster = PlanOptions(memory_bytes=TIGHT_GIB << 30, pins=pins), "8xrtx-titan"
    answers = [
        galvatron_table.planned(rescale(model, batch), load_cluster(cluster), options)
        for batch in (8, 16, 32, 64, 128)
    ]
    return max((a.prediction.samples_per_second for a in answers if a), default=0.0)


def slices_speed(_: Path | None) -> float | None:
    """Percent more samples/s where products gather weights in slices, each at its best batch."""
    return 100 * (most_samples("slice") / most_samples("zero3") - 1)


def _traced(module: Any, batch: int, tokens: int, name: str) -> Model:
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    with torch.device("meta"):
        built = module()
    return trace(built, {"input_ids": ids, "labels": ids}, name=name)


@cache
def bert_large() -> Model:
    config = transformers.BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    return _traced(lambda: transformers.BertForMaskedLM(config), 8, 512, "bert-large")


def stale_gain(_: Path | None) -> float | None:
    """Percent faster where sums of gradients travel beside the next step's compute."""
    model, cluster = rescale(bert_large(), 64), load_cluster("4x1xh100@10")
    answers = [
        galvatron_table.planned(model, cluster, PlanOptions(optimizer=name, pins=pin_all("dp=4")))
        for name in ("stale-sgd", "stale-sgd:delay=0")
    ]
    late, at_once = (answer and answer.prediction.step_seconds for answer in answers)
    return 100 * (at_once / late - 1) if late and at_once else None


def both_directions_gain(_: Path | None) -> float | None:
    """Percent faster than 1F1B where micro-batches enter the pipeline at either end."""
    model, cluster = rescale(bert_large(), 64), load_cluster("4x1xh100")
    seconds = []
    for schedule in ("1f1b", "bidirectional"):
        options = PlanOptions(pins=pin_all("pp=4"), micro_batches=8, schedule=schedule)
        answer = galvatron_table.planned(model, cluster, options)
        seconds.append(answer.prediction.step_seconds if answer else inf)
    return 100 * (seconds[0] / seconds[1] - 1)


@cache
def gpt_of_experts() -> Model:
    """A small GPT, of whose layers each has 64 gated experts; a token goes to two."""
    config = transformers.MixtralConfig(
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        intermediate_size=3072,
        num_local_experts=64,
    )
    return _traced(lambda: transformers.MixtralForCausalLM(config), 8, 1024, "gpt-moe")


def replicas_gain(_: Path | None) -> float | None:
    """Times faster with a slot a rank for replicas of experts, where ten of 64 get 3 tokens in 4."""
    model, cluster = (
        in_precision(rescale(gpt_of_experts(), 512), "bf16"),
        load_cluster("8x8xa100-80"),
    )
    counts = [(i + 1.0) ** -1.25 for i in range(64)]
    Random(0).shuffle(counts)
    options = PlanOptions(
        precision="bf16", pins=pin_all("dp=8,ep=8"), routing=Routing(counts=tuple(counts))
    )
    answers = [
        galvatron_table.planned(model, cluster, replace(options, expert_slots=slots))
        for slots in (0, 1)
    ]
    fixed, placed = (answer and answer.prediction.step_seconds for answer in answers)
    return fixed / placed if fixed and placed else None


def centroids_gain(_: Path | None) -> float | None:
    """Times faster where one row in five at most travels to experts and back."""
    model, cluster = (
        in_precision(rescale(gpt_of_experts(), 256), "bf16"),
        load_cluster("4x8xa100-80"),
    )
    options = PlanOptions(precision="bf16", pins=pin_all("ep=32"))
    answers = [
        galvatron_table.planned(model, cluster, replace(options, compress=name))
        for name in ("none", "lsh-moe")
    ]
    plain, compressed = (answer and answer.prediction.step_seconds for answer in answers)
    return plain / compressed if plain and compressed else None


def largest_batch(actions: tuple[str, ...]) -> int:
    """The most samples, in steps of a quarter of their power of two, that one RTX TITAN trains in
    one micro-batch."""
    cluster, fits, step = load_cluster("1xrtx-titan"), 0, 8
    options = PlanOptions(memory_actions=actions, micro_batches=1, pins=pin_all("dp=1"))
    while step:
        model = rescale(bert_large(), fits + step)
        if galvatron_table.planned(model, cluster, options) is not None:
            fits, step = fits + step, (step if fits % (2 * step) else 2 * step)
        else:
            step = step // 2 if step > max(1, fits // 8) else 0
    return fits


def batch_over_offload(_: Path | None) -> float | None:
    """The largest batch with all actions over the largest with vDNN's rule, all on the host."""
    offloaded = largest_batch(("offload",))
    return largest_batch(("keep", "recompute", "offload", "split")) / offloaded


@cache
def _gpt_of(layers: int) -> Model:
    """A GPT of width 16,384 in bf16, on eight samples of 1,024 tokens."""
    config = transformers.GPT2Config(n_embd=16384, n_layer=layers, n_head=128)
    return in_precision(
        _traced(partial(transformers.GPT2LMHeadModel, config), 8, 1024, "gpt"), "bf16"
    )


@cache
def most_layers(optimizer_on: str) -> int:
    """The most layers that 8 A100 of 40 GB train under zero3, by where the optimizer steps."""
    options = PlanOptions(precision="bf16", pins=pin_all("zero3=8"), optimizer_on=optimizer_on)
    fits, step = 0, 16
    while step:
        space = SearchSpace.create(_gpt_of(fits + step), load_cluster("8xa100-40"), options)
        space.run()
        if space.best is not None:
            fits, step = fits + step, step if fits % (2 * step) else 2 * step
        else:
            step //= 2
    return fits


def layers_on_host(_: Path | None) -> float | None:
    """Percent more layers where the optimizer steps on the hosts."""
    return 100 * (most_layers("host") / most_layers("device") - 1)


def memo_mfu(_: Path | None) -> float | None:
    """Percent of the peak that a 7B model reaches on a million tokens."""
    config = transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    config.max_position_embeddings = 2**20
    model = _traced(lambda: transformers.LlamaForCausalLM(config), 1, 2**20, "llama-7b")
    answer = galvatron_table.planned(
        in_precision(model, "bf16"), load_cluster("8xa800-80"), PlanOptions(precision="bf16")
    )
    return answer and 100 * answer.prediction.mfu


def two_lengths_gain(_: Path | None) -> float | None:
    """Times that a step of short and long sequences is faster under two plans, weights and gradients
    moving over the slowest link in between, than under the best one that both can run."""
    cluster = load_cluster("16xh100")
    config = transformers.LlamaConfig.from_pretrained(LLAMA_8B)
    models = [
        in_precision(
            _traced(lambda: transformers.LlamaForCausalLM(config), *shape, "llama-8b"), "bf16"
        )
        for shape in (SHORT, LONG)
    ]
    options = PlanOptions(precision="bf16")
    answers = [galvatron_table.planned(model, cluster, options) for model in models]
    if None in answers:
        return None
    plans = [answer for answer in answers if answer is not None]
    tables = [plan_table(*pair) for pair in zip(plans, models, strict=True)]
    moved = max(redistribution_bytes(*tables).by_rank)
    moving = moved / cluster.slowest_link(1, cluster.devices).bandwidth_bytes_per_second
    alone = sum(plan.prediction.step_seconds for plan in plans) + moving
    common = [_step_of_both(models, plan.strategy_text) for plan in plans]
    return min(common) / min([alone, *common])


def _step_of_both(models: list[Model], strategy: str) -> float:
    """Seconds of one strategy for all; infinite where one does not fit."""
    options = PlanOptions(precision="bf16", pins=pin_all(strategy))
    answers = [galvatron_table.planned(m, load_cluster("16xh100"), options) for m in models]
    return sum(inf if answer is None else answer.prediction.step_seconds for answer in answers)
