"""Kernels of compression programs, compiled for targets, and what their compilers report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..codegen.compression import cpp
from ..codegen.compression.aot import EXTENSIONS, KernelCompiler, available, target_of
from ..ir.compression.kernel import CompressionKernel, KernelPipeline
from ..ir.compression.lower import lower
from ..ir.compression.registry import programs
from ..runtime.compression.backends.native import build, cache_directory
from .formats import files

INNER, OUTER = 4, 2  # ranks of a node, and nodes, that kernels are printed for
GPUS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx90a", "hip:gfx942")


class KernelReport(NamedTuple):
    """A kernel for a target. Registers and spills are None on a CPU, where no tool tells them."""

    name: str
    target: str
    registers: int | None
    spills: int | None
    bytes_per_element: float


def pipelines_of(name: str) -> list[KernelPipeline]:
    """The kernels of an algorithm's programs, or of one program. Raises UsageError."""
    return [lower(program, INNER, OUTER, total=True) for program in programs(name)]


def parse_targets(text: str | None) -> list[str]:
    """`cpu,cuda:90` as targets, or all that can be compiled for here. Raises UsageError."""
    if not text:
        return ["cpu", *(GPUS if available() else ())]
    targets = text.split(",")
    for target in targets:
        if target != "cpu":
            target_of(target)
    return targets


def compile_kernels(
    pipelines: Sequence[KernelPipeline], targets: Sequence[str], folder: Path | None
) -> Iterator[KernelReport]:
    """Compile kernels for targets, from the cache where they were compiled before, and write sources
    and assembly to `folder`."""
    kernels = {kernel.name: kernel for pipeline in pipelines for kernel in pipeline.kernels}
    sources: dict[str, str] = {}
    cache = folder / "build" if folder else cache_directory()
    for target in targets:
        if target == "cpu":
            sources["kernels.cpp"] = cpp.source(*pipelines)
            build(sources["kernels.cpp"], cache)
            yield from (
                KernelReport(name, target, None, None, bytes_per_element(kernel))
                for name, kernel in kernels.items()
            )
            continue
        compiler = KernelCompiler(pipelines, cache)
        sources["kernels.py"] = compiler.text
        extension = EXTENSIONS[target.partition(":")[0]]
        for name, kernel in kernels.items():
            compiled = compiler.compile(kernel, target)
            sources[f"{name}.{target.replace(':', '_')}.{extension}"] = compiled.assembly
            yield KernelReport(
                name, target, compiled.registers, compiled.spills, bytes_per_element(kernel)
            )
    if folder is not None:
        for name, text in sources.items():
            files.write_text(folder / name, text)


def bytes_per_element(kernel: CompressionKernel) -> float:
    """Bytes per element of the messages that a kernel writes, or else reads; 4 for flat numbers."""
    message = kernel.target or kernel.source
    return message.bytes_per_element if message else 4.0


def kernel_table(rows: Sequence[KernelReport]) -> Iterator[str]:
    """One line a kernel and target."""
    width = max(len(row.name) for row in rows)
    yield f"{'kernel':<{width}}  {'target':<11}{'registers':>9}{'spills':>8}{'bytes/element':>15}"
    for row in rows:
        registers = "-" if row.registers is None else str(row.registers)
        spills = "-" if row.spills is None else str(row.spills)
        yield (
            f"{row.name:<{width}}  {row.target:<11}{registers:>9}{spills:>8}"
            f"{row.bytes_per_element:>15.4g}"
        )
