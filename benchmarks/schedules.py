"""Predicted time and memory of pipeline schedules at one layout, beside ratios that were measured.

    python benchmarks/schedules.py                          Llama-2-7B over 8 stages of MI300X
    python benchmarks/schedules.py --samples 1 --micro-batches 64

The published rows are throughput and peak memory relative to 1F1B at one layout (AMD, 2025,
Primus-Pipeline: Llama-2-7B over eight stages of one node of MI300), whose figures are pictures:
micro-batches and their samples are inferred from the ratios themselves, and so are the two model chunks
of the interleaved row, whose speed-up of 1.09 is that of two (39 / 35.5 with bubbles of 7 and 3.5
micro-batches of 32) and not of four (1.15 by bubbles alone); so they are options here and the
comparison is no blind one. Predictions come from plans: every schedule is simulated with the seconds
and bytes of the plan's stages; nothing is fitted.
"""

from __future__ import annotations

import argparse
from functools import cache
from typing import NamedTuple

import torch
from msgspec.structs import replace

from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.errors import UsageError
from plait.ir.lowering.cast import in_precision
from plait.ir.model.model import Model
from plait.ir.plan.memory_action import KEEP
from plait.ir.plan.plan import Plan
from plait.ir.plan.schedules.registry import SCHEDULES
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all

TOKENS = 4096


class Published(NamedTuple):
    """Throughput and peak memory relative to 1F1B."""

    speed: float
    memory: float


PUBLISHED = {
    "1f1b": Published(1.00, 1.00),
    "interleaved": Published(1.09, 1.31),
    "zb-h1": Published(1.13, 1.02),
    "v-half": Published(1.08, 0.86),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--cluster", default="8xmi300x")
    add("--stages", type=int, default=8)
    add("--micro-batches", type=int, default=32)
    add("--samples", type=int, default=2, help="of a micro-batch")
    add("--chunks", type=int, default=2, help="of a stage, where a schedule is interleaved")
    options = parser.parse_args()
    rows = {name: row for name in SCHEDULES for row in [priced(name, options)] if row is not None}
    plain = rows["1f1b"]
    print(
        f"Llama-2-7B, {options.stages} stages, {options.micro_batches} micro-batches of "
        f"{options.samples} × {TOKENS} tokens, {options.cluster}: 1F1B takes "
        f"{plain.seconds:.2f} s and {plain.gib:.1f} GiB"
    )
    print(f"{'schedule':<13}{'speed':>7}{'memory':>8}{'bubble':>9}    published speed, memory")
    for name, row in rows.items():
        speed, memory = plain.seconds / row.seconds, row.gib / plain.gib
        text = f"{name:<13}{speed:>7.2f}{memory:>8.2f}{row.bubble:>9.1%}"
        if name in PUBLISHED:
            one = PUBLISHED[name]
            text += (
                f"{one.speed:>11.2f}{one.memory:>8.2f}   off by {100 * (speed - one.speed):+.1f}"
            )
            text += f" and {100 * (memory - one.memory):+.1f} points"
        print(text)


class Row(NamedTuple):
    """A plan's step, its peak per device and the fraction of time that stages wait."""

    seconds: float
    gib: float
    bubble: float


def priced(schedule: str, options: argparse.Namespace) -> Row | None:
    """The plan of a schedule; None where it cannot have these numbers."""
    try:
        answer = planned(schedule, options)
    except UsageError as error:
        print(f"{schedule}: {error}")
        return None
    step = answer.prediction
    return Row(step.step_seconds, answer.peak_bytes / 2**30, step.bubble)


def planned(schedule: str, options: argparse.Namespace) -> Plan:
    """Everything is kept, and memory is no limit."""
    model = traced(options.samples * options.micro_batches)
    chunks = options.chunks if schedule == "interleaved" else None
    (pin,) = pin_all(f"pp={options.stages}")
    question = PlanOptions(
        precision="bf16",
        gradient_precision="fp32",
        pins=(pin if chunks is None else replace(pin, memory=KEEP),),
        micro_batches=options.micro_batches,
        memory_actions=("keep",),
        memory_bytes=1 << 50,
        schedule=schedule,
        bounds=None if chunks is None else even_bounds(model, options.stages * chunks),
        model_chunks=chunks,
    )
    return plan(model, load_cluster(options.cluster), question)


def even_bounds(model: Model, chunks: int) -> tuple[int, ...]:
    """The first call of every model chunk, of equally many layers each, and the number of calls."""
    functions = [call.function for call in model.calls]
    layer = max(functions, key=functions.count)
    layers = [number for number, function in enumerate(functions) if function == layer]
    size = len(layers) // chunks
    return (0, *layers[size::size], len(functions))


@cache
def traced(batch: int) -> Model:
    """Llama-2-7B in bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008)
    config.num_hidden_layers, config.num_attention_heads = 32, 32
    config.attn_implementation = "sdpa"
    with torch.device("meta"):
        module = LlamaForCausalLM(config)
        tokens = torch.zeros(2, TOKENS, dtype=torch.int64)
    model = trace(module, {"input_ids": tokens, "labels": tokens}, batch_size=batch)
    return in_precision(model, "bf16")


if __name__ == "__main__":
    main()
