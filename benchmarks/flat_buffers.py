"""Padding of flat buffers on public architectures, against padding every tensor to common blocks.

python benchmarks/flat_buffers.py
"""

import time
from math import lcm

from plait.benchmarks.shapes import DEEPSEEK_V3_LAYER, LLAMA_3_70B_LAYER, Shapes
from plait.planner.allocation.flat_shards import flatten
from plait.planner.allocation.flat_shards.judge import check
from plait.planner.allocation.flat_shards.problem import FlatTensor

RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)
BLOCKS = (("128 elements", 0, 128), ("a row", 1, 1), ("16 rows", 16, 1), ("128 rows", 128, 1))
MODELS = (("DeepSeek-V3 layer", DEEPSEEK_V3_LAYER), ("Llama-3-70B layer", LLAMA_3_70B_LAYER))


def naive_padding(tensors: list[FlatTensor], ranks: int) -> float:
    """Tensors in the model's order, each starting at a multiple of the blocks' common multiple,
    and shards cut there: the usual way to keep every cut on a block's edge."""
    unit = lcm(*(min(t.block, t.elements) for t in tensors))
    used = sum(-(-t.elements // unit) for t in tensors)
    elements = sum(t.elements for t in tensors)
    return (-(-used // ranks) * unit * ranks - elements) / elements


def row(model: str, shapes: Shapes, label: str, rows: int, block: int, ranks: int) -> str:
    tensors = [FlatTensor.of(name, shape, rows, block) for name, shape in shapes]
    start = time.process_time()
    flat = flatten(tensors, ranks)
    seconds = time.process_time() - start
    check(tensors, flat)
    elements = sum(t.elements for t in tensors)
    return (
        f"{model:<18}{label:<13}{ranks:>6}{flat.padding(elements):>10.3%}{flat.gap:>9.3%}"
        f"{naive_padding(tensors, ranks):>12.2%}{seconds:>9.3f}"
    )


def main() -> None:
    print("model             block          ranks   padding      gap       naive    CPU s")
    flatten([FlatTensor(f"t{i}", 10 + i, 2) for i in range(20)], 3)  # compiles
    flatten([FlatTensor("t", 3)], 2)
    for model, shapes in MODELS:
        for label, rows, block in BLOCKS:
            for ranks in RANKS:
                print(row(model, shapes, label, rows, block, ranks))


if __name__ == "__main__":
    main()
