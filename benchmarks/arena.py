"""Arenas: packing instances of a folder, whole training steps of models, and stages of plans.

python benchmarks/arena.py [PATH]      PATH holds CSV files named NAME.CAPACITY.csv
"""

import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plait.api.formats.buffer_files import read_buffers
from plait.benchmarks.step_buffers import step_buffers
from plait.cost_model.explain.memory_terms import working_bytes
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.ir.lowering.cast import in_precision
from plait.ir.plan.allocation import Buffer
from plait.planner import PlanOptions, plan
from plait.planner.allocation.arena import pack
from plait.planner.allocation.arena.greedy import first_fit, height, orders
from plait.planner.allocation.arena.judge import height as judged
from plait.planner.allocation.arena.sections import sections
from plait.planner.allocation.repeated_layers import pack_repeated
from plait.planner.allocation.stage_buffers import plan_buffers
from plait.planner.question.pins import parse_pin

CONFIGS = Path(__file__).resolve().parent.parent / "examples" / "configs"
MODELS = (("gpt2", 4, 512), ("bert", 8, 512), ("llama3-8b", 1, 2048), ("mixtral-8x7b", 1, 1024))
PLANS = (  # model, samples, tokens of a sample, cluster, strategy, micro-batches
    ("gpt2", 64, 1024, "8xh100", "pp=4,dp=2", 8),
    ("llama3-8b", 16, 8192, "8xh100", "", None),
    ("llama3-8b", 64, 8192, "8x8xh100", "pp=8,tp=2,dp=4", 16),
    ("llama3-8b", 1, 1048576, "8xh100", "", None),
    ("mixtral-8x7b", 64, 4096, "8x8xh100", "", None),
)
TIME_LIMIT_SECONDS = 120.0
LEAST_SECONDS = 20.0


def by_size(buffers: Sequence[Buffer]) -> int:
    """The peak of first fit, biggest first: what TFLite and TVM do."""
    parts = sections(buffers)
    order = sorted(range(len(buffers)), key=lambda i: (-buffers[i].size, buffers[i].lower))
    return height(parts, first_fit(parts.size, parts.first, parts.last, np.array(order)))


def best_order(buffers: Sequence[Buffer]) -> int:
    """The lowest peak of first fit over all orders."""
    parts = sections(buffers)
    return min(
        height(parts, first_fit(parts.size, parts.first, parts.last, o)) for o in orders(parts)
    )


def exact_shape(buffers: Sequence[Buffer]) -> int:
    """The peak when memory is reused between buffers of one size only, as Hetu's planner does."""
    sizes: dict[int, list[Buffer]] = defaultdict(list)
    for b in buffers:
        sizes[b.size].append(b)
    return sum(sections(same).bound() for same in sizes.values())


def baselines(buffers: Sequence[Buffer], bound: int) -> str:
    found = (by_size(buffers), best_order(buffers), exact_shape(buffers))
    return "".join(f"{peak / bound:>11.3f}" for peak in found)


def instances(folder: Path) -> None:
    print(
        "instance  buffers    capacity       bound        peak    CPU s  least peak    bound"
        "    CPU s    by size best order exact shape"
    )
    for path in sorted(folder.glob("*.csv")):
        name, capacity = path.name.split(".")[:2]
        buffers = read_buffers(path)
        start = time.process_time()
        packing = pack(buffers, int(capacity), time_limit_seconds=TIME_LIMIT_SECONDS)
        fitted = time.process_time()
        least = pack(buffers, time_limit_seconds=LEAST_SECONDS)
        done = time.process_time()
        for judged_packing in (packing, least):
            assert judged(buffers, judged_packing.offsets) == judged_packing.peak_bytes
        bound = sections(buffers).bound()
        print(
            f"{name:<9}{len(buffers):>8}{capacity:>12}{bound:>12}{packing.peak_bytes:>12}"
            f"{fitted - start:>9.2f}{least.peak_bytes:>12}{least.lower_bound_bytes:>9}"
            f"{done - fitted:>9.2f}{baselines(buffers, bound)}",
            flush=True,
        )


def models() -> None:
    print(
        "\nmodel           variant     buffers   bound GiB  peak/bound    CPU s"
        "    by size best order exact shape"
    )
    for name, batch, seq in MODELS:
        source = load_source(f"hf:{CONFIGS / name}.json", batch=batch, seq=seq)
        model = trace(source.model, source.batch, batch_size=batch)
        for variant in ("keep", "recompute"):
            start = time.process_time()
            step = step_buffers(model, variant)
            placed = pack_repeated(step.buffers, step.segment_starts, time_limit_seconds=2.0)
            seconds = time.process_time() - start
            assert judged(step.buffers, placed.offsets) == placed.peak_bytes
            bound = sections(step.buffers).bound()
            print(
                f"{name:<16}{variant:<10}{len(step.buffers):>9}{bound / 2**30:>12.3f}"
                f"{placed.peak_bytes / bound:>12.4f}{seconds:>9.2f}{baselines(step.buffers, bound)}",
                flush=True,
            )


def plans() -> None:
    print(
        "\nmodel           strategy                micro-batches  stages  buffers   live GiB"
        "  peak/live  live/promised    CPU s    by size best order exact shape"
    )
    for name, batch, seq, cluster, strategy, micro_batches in PLANS:
        source = load_source(f"hf:{CONFIGS / name}.json", batch=min(batch, 8), seq=seq)
        model = in_precision(trace(source.model, source.batch, batch_size=batch), "bf16")
        pins = (parse_pin(strategy),) if strategy else ()
        asked = PlanOptions(
            precision="bf16", pins=pins, micro_batches=micro_batches, schedule="1f1b"
        )
        answer = plan(model, load_cluster(cluster), asked)
        start = time.process_time()
        stages = list(plan_buffers(answer, model))
        packed = [
            pack_repeated(s.buffers, s.segment_starts, time_limit_seconds=1.0) for s in stages
        ]
        seconds = time.process_time() - start
        for s, packing in zip(stages, packed, strict=True):
            assert judged(s.buffers, packing.offsets) == packing.peak_bytes
        bounds = [packing.lower_bound_bytes for packing in packed]
        full = bounds.index(max(bounds))
        peaks = max(p.peak_bytes / p.lower_bound_bytes for p in packed)
        promised = [bound / working_bytes(answer, n) for n, bound in enumerate(bounds)]
        print(
            f"{name:<16}{answer.strategy_text[:22]:<24}{answer.micro_batches:>13}{len(stages):>8}"
            f"{sum(len(s.buffers) for s in stages):>9}{bounds[full] / 2**30:>11.3f}{peaks:>11.4f}"
            f"{min(promised):>9.3f}-{max(promised):.3f}{seconds:>9.2f}"
            f"{baselines(stages[full].buffers, bounds[full])}",
            flush=True,
        )


def main(arguments: list[str]) -> int:
    warm = [Buffer(f"b{i}", i % 3, i % 3 + 2, 3 + i) for i in range(9)]
    pack(warm, sections(warm).bound() - 1)  # loads compiled code
    pack(warm)
    if arguments and Path(arguments[0]).is_dir():
        instances(Path(arguments[0]))
    else:
        print("packing instances skipped: no folder of CSV files given")
    models()
    plans()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
