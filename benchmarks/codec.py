"""Speed of compiled codecs on one core: `python benchmarks/codec.py [--elements N]`.

CPU seconds of kernels on a flat bucket, best of several, beside a copy of the same bucket in memory:
encoding for four ranks, decoding what four ranks gathered, and decoding and adding up what four ranks
sent, which counts the elements that are decoded.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from plait.codegen.compression.cpp import source
from plait.ir.compression.algorithms.building_blocks import DECODE, integers, signs
from plait.ir.compression.lower import lower
from plait.ir.compression.program import CompressionProgram
from plait.ir.compression.stage import (
    AllGather,
    AllToAll,
    CompressionStages,
    Hadamard,
    Reduce,
    Scale,
)
from plait.runtime.compression.backends.codec import Launch, target_for
from plait.runtime.compression.backends.native import NativeCodec, build

ELEMENTS, RANKS, GROUP = 16 * 2**20, 4, 128
CODECS: dict[str, CompressionStages] = {
    "4-bit": integers(4, GROUP),
    "4-bit stochastic": integers(4, GROUP, "stochastic"),
    "4-bit Hadamard": (Hadamard(32), *integers(4, GROUP)),
    "4-bit Hadamard stochastic": (Hadamard(32), *integers(4, GROUP, "stochastic")),
    "4-bit group 2048": integers(4, 2048),
    "8-bit": integers(8, GROUP),
    "1-bit": signs("l1", GROUP),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=ELEMENTS)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    flat = torch.randn(options.elements)
    copy = torch.empty_like(flat)
    row("memcpy", options.elements, best(lambda: copy.copy_(flat), options.repeats))
    with tempfile.TemporaryDirectory() as cache:
        for name, encode in CODECS.items():
            measure(name, encode, flat, options.repeats, Path(cache))


def measure(
    name: str, encode: CompressionStages, flat: torch.Tensor, repeats: int, cache: Path
) -> None:
    """The kernels of a reduce-scatter, and the last one of an all-gather."""
    back: CompressionStages = (
        (Hadamard(32), Scale(1 / 32)) if isinstance(encode[0], Hadamard) else ()
    )
    reducing = CompressionProgram(
        "reducing",
        "gradients",
        "reduce_scatter",
        (*encode, AllToAll(), *DECODE, Reduce("sum"), *back),
        accepts_bias="a benchmark",
    )
    gathering = CompressionProgram(
        "gathering", "activations", "all_gather", (*encode, AllGather(), *DECODE, *back)
    )
    pipelines = lower(reducing, RANKS), lower(gathering, RANKS)
    native = NativeCodec(build(source(*pipelines), cache))
    elements = pipelines[0].chunk(flat.numel())
    first, last = pipelines[0].kernels
    gathered = pipelines[1].kernels[-1]
    messages = target_for(first, elements)
    for title, kernel, read in (
        ("encode", first, flat),
        ("decode", gathered, messages),
        ("decode and add", last, messages),
    ):
        launch = Launch(elements, read, target_for(kernel, elements), {})
        seconds = best(lambda k=kernel, a=launch: native.run(k, a), repeats)
        row(f"{name}, {title}", flat.numel(), seconds)


def best(work: Callable[[], object], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def row(name: str, elements: int, seconds: float) -> None:
    print(f"{name:<42}{1e3 * seconds:8.1f} ms{elements / seconds / 1e6:10.0f} M elements/s")


if __name__ == "__main__":
    main()
