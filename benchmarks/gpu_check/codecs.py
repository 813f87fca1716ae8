"""Kernels of compressed messages on the GPU: the reference's bits, and shares of memory bandwidth."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from plait.benchmarks.gpu_check.check import Machine, Row, check, row, timed_row
from plait.benchmarks.gpu_check.timing import copy_bandwidth, seconds
from plait.codegen.compression import cpp, triton
from plait.ir.compression.kernel import CompressionKernel
from plait.ir.compression.lower import lower
from plait.ir.compression.registry import PROGRAMS
from plait.runtime.compression.backends.codec import Codec, Launch, target_for
from plait.runtime.compression.backends.native import NativeCodec, build
from plait.runtime.compression.backends.reference import ELEMENTS, ReferenceCodec
from plait.runtime.compression.backends.triton import triton_codec

NAMES = ("sdp4bit.weights", "sdp4bit.gradients", "error-feedback.gradients", "1-bit-adam.momentum")
TILES, BAR = 37, 0.5  # tiles of a chunk where bits are compared; share of a copy's bytes per second


def codec_on(machine: Machine, folder: Path) -> Codec:
    """Triton's kernels; in a rehearsal those of C++."""
    pipelines = [lower(PROGRAMS[name], 4, 2) for name in NAMES]
    if machine.device == "cpu":
        return NativeCodec(build(cpp.source(*pipelines), folder / "build"))
    (folder / "kernels.py").write_text(triton.source(*pipelines))
    return triton_codec(folder / "kernels.py")


def launch(kernel: CompressionKernel, elements: int, data: Tensor, device: str) -> Launch:
    """Arguments on a device: random states, and `data` as the kernel's source."""
    torch.manual_seed(1)
    states = {
        o.name: torch.randn(kernel.chunks * elements).to(ELEMENTS[o.element]).to(device)
        for o in kernel.operands
    }
    number = torch.tensor([0.37], device=device)
    target = target_for(kernel, elements, torch.device(device))
    return Launch(elements, data.to(device), target, states, number, 12345 | 7 << 32, 3)


def source_of(kernel: CompressionKernel, elements: int, previous: Tensor | None) -> Tensor:
    """Random numbers, or as many messages as a kernel reads, of what the kernel before it wrote."""
    if kernel.source is None or previous is None:
        return torch.randn(kernel.chunks * elements)
    count = kernel.ranks * kernel.chunks * kernel.source.bytes(elements)
    return previous.repeat(-(-count // previous.numel()))[:count].clone()


@check("codecs", "the reference's bits")
def codecs(machine: Machine) -> Iterator[Row]:
    """Every kernel of some programs, on the codes that the ones before it gave."""
    with tempfile.TemporaryDirectory() as scratch:
        codec, most = codec_on(machine, Path(scratch)), copy_bandwidth(machine)
        for name in NAMES:
            pipeline, previous = lower(PROGRAMS[name], 4, 2), None
            for kernel in pipeline.kernels:
                elements = TILES * pipeline.tile
                data = source_of(kernel, elements, previous)
                pair = [launch(kernel, elements, data, d) for d in ("cpu", machine.device)]
                for one, arguments in zip((ReferenceCodec(), codec), pair, strict=True):
                    one.run(kernel, arguments)
                wrong = sum(
                    int((a != b.cpu()).sum()) for a, b in zip(*map(written, pair), strict=True)
                )
                yield row(f"codecs: {kernel.name}", "0 differ", str(wrong), wrong == 0)
                previous = previous if kernel.target is None else pair[0].target
                yield speed(machine, codec, kernel, pipeline.tile, most)


def written(arguments: Launch) -> list[Tensor]:
    """What a kernel may have written."""
    return [arguments.target, *arguments.states.values()]


def speed(machine: Machine, codec: Codec, kernel: CompressionKernel, tile: int, most: float) -> Row:
    """Bytes per second that a kernel reads and writes, of those of a copy."""
    elements = (1 << 16 if machine.small else 1 << 25) // tile * tile // kernel.chunks
    elements = max(elements // tile, 1) * tile
    blank = None if kernel.source is None else torch.zeros(1, dtype=torch.uint8)
    arguments = launch(kernel, elements, source_of(kernel, elements, blank), machine.device)
    moved = sum(t.nbytes for t in (arguments.source, *written(arguments)))
    share = moved / seconds(lambda: codec.run(kernel, arguments), machine) / most
    name, text = f"codecs: speed of {kernel.name}", f"{share:.0%}"
    return timed_row(machine, name, f"≥ {BAR:.0%}", text, share >= BAR)
