"""Figures of memory: addresses, reuse and padding."""

from __future__ import annotations

from pathlib import Path

from plait.api.formats.buffer_files import read_buffers
from plait.benchmarks.arena import CONFIGS, exact_shape
from plait.benchmarks.shapes import DEEPSEEK_V3_LAYER
from plait.benchmarks.step_buffers import step_buffers
from plait.ir.capture import load_source, trace
from plait.planner.allocation.arena import pack
from plait.planner.allocation.arena.judge import height
from plait.planner.allocation.flat_shards import flatten
from plait.planner.allocation.flat_shards.problem import FlatTensor
from plait.planner.allocation.repeated_layers import pack_repeated


def instances_packed(data: Path | None) -> float | None:
    """How many of the challenging instances A to E fit in their capacity, as another judge says."""
    folder = data and data / "minimalloc"
    if folder is None or not folder.is_dir():
        return None
    count = 0
    for path in sorted(folder.glob("[A-E].*.csv")):
        buffers, capacity = read_buffers(path), int(path.name.split(".")[1])
        packing = pack(buffers, capacity, time_limit_seconds=60)
        count += height(buffers, packing.offsets) <= capacity
    return count


def over_reuse_of_equal_sizes(_: Path | None) -> float:
    """Percent that a free list of equal sizes takes more than the arena, GPT-2 at 4 × 512."""
    source = load_source(f"hf:{CONFIGS / 'gpt2.json'}", batch=4, seq=512)
    step = step_buffers(trace(source.model, source.batch, batch_size=4))
    packed = pack_repeated(step.buffers, step.segment_starts, time_limit_seconds=2.0)
    return 100 * (exact_shape(step.buffers) / packed.peak_bytes - 1)


def padding(_: Path | None) -> float:
    """Percent of padding of a DeepSeek-V3 layer on 1,024 ranks, blocks of 128 elements."""
    tensors = [FlatTensor.of(name, shape, 0, 128) for name, shape in DEEPSEEK_V3_LAYER]
    elements = sum(t.elements for t in tensors)
    return 100 * flatten(tensors, 1024).padding(elements)
