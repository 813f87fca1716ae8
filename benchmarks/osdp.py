"""Operators whole or in shards, each by itself, against all in shards: `python osdp.py [--memory GIB]`.

A GPT-2 of 1.5 billion parameters in float32 with AdamW (16 bytes a parameter) on 8 devices, layers
recomputed, 1,024 tokens a sample. `fsdp` shards every operator; `layers` chooses dp or zero3 for every
linear map and the embedding, `split` also parts of them. Each has the batch at which it is fastest;
`fsdp, 5657 MB` is FSDP with the memory that OSDP's authors report for it (158 samples/s, against 192
in 8057 MB: +21.6 %).
"""

from __future__ import annotations

import argparse
import time

from msgspec.structs import replace

from plait.benchmarks.accuracy import table
from plait.benchmarks.rivals.osdp import Operator, OsdpPlan, Setting, best, sharded
from plait.cost_model.hardware import load_cluster
from plait.ir.devices.cluster import Cluster

LAYERS, HIDDEN, TOKENS, VOCABULARY = 48, 1600, 1024, 50257
CLUSTERS = ("8xrtx-titan", "8xa100-40", "8xh100", "2x8xa100-40")
ITEM_BYTES = 4
PUBLISHED_BYTES = 5657 * 2**20
HEAD = ["cluster", "way", "samples/s", "to fsdp", "batch", "CPU s", "kept"]


def operators(slices: tuple[int, ...]) -> list[Operator]:
    """The weights of the model, without vectors and positions."""
    square = ITEM_BYTES * HIDDEN * HIDDEN
    return [
        Operator("qkv", LAYERS, 3 * square, slices),
        Operator("proj", LAYERS, square, slices),
        Operator("fc", LAYERS, 4 * square, slices),
        Operator("out", LAYERS, 4 * square, slices),
        Operator("embedding", 1, ITEM_BYTES * VOCABULARY * HIDDEN, slices),
    ]


def setting(cluster: Cluster, memory_gib: float) -> Setting:
    """One ring over all devices at the speed of its slowest link; compute at what the preset says can
    be achieved of float16, forward twice and backward once."""
    link = cluster.slowest_link(1, cluster.devices)
    weights = sum(o.count * o.weight_bytes for o in operators((1,)))
    flops = (2 + 2 + 4) * weights // ITEM_BYTES * TOKENS
    speed = cluster.device.peak("float16") * cluster.device.achievable
    return Setting(
        ranks=cluster.devices,
        message_seconds=link.latency_seconds,
        byte_seconds=1 / link.bandwidth_bytes_per_second,
        states=4.0,
        sample_bytes=ITEM_BYTES * TOKENS * HIDDEN * (LAYERS + 16),
        sample_seconds=flops / speed,
        budget_bytes=int(memory_gib * 2**30) - cluster.device.runtime_overhead_bytes,
    )


def rows(name: str, memory_gib: float) -> list[list[str]]:
    cluster = load_cluster(name)
    limits = setting(cluster, memory_gib)
    plain = best(operators((1,)), limits, sharded)
    less = replace(
        limits, budget_bytes=limits.budget_bytes - int(memory_gib * 2**30) + PUBLISHED_BYTES
    )
    plans: list[tuple[str, OsdpPlan | None, float]] = [
        ("fsdp, 5657 MB", best(operators((1,)), less, sharded), 0.0),
        ("fsdp", plain, 0.0),
    ]
    for variant, slices in (("layers", (1,)), ("split", (1, 2, 4))):
        start = time.process_time()
        plans.append((variant, best(operators(slices), limits), time.process_time() - start))
    return [
        [
            name,
            variant,
            f"{cluster.devices / choices.sample_seconds:.1f}",
            f"{plain.sample_seconds / choices.sample_seconds - 1:+.1%}",
            str(choices.samples),
            f"{cpu:.1f}",
            "; ".join(" ".join(f"{n}x{w}" for w, n in own.items()) for own in choices.counts),
        ]
        for variant, choices, cpu in plans
        if choices is not None and plain is not None
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", type=float, default=8.0, metavar="GIB", help="of a device")
    memory = parser.parse_args().memory
    print(table(HEAD, [row for name in CLUSTERS for row in rows(name, memory)]))


if __name__ == "__main__":
    main()
