"""`plait kernels`: the kernels of a compression program, as source and compiled for targets."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...codegen.compression import cpp
from ...codegen.compression.ahead import EXTENSIONS, Compiler, available, target_of
from ...ir.compression.kernel import Kernel, Pipeline
from ...ir.compression.lower import lower
from ...ir.compression.registry import programs
from ...runtime.compression.backends.native import build, cache_directory
from .. import files
from .common import show

INNER, OUTER = 4, 2  # ranks of a node, and nodes, that kernels are printed for
GPUS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx90a", "hip:gfx942")


class Row(NamedTuple):
    """A kernel for a target. Registers and spills are None on a CPU, where no tool tells them."""

    name: str
    target: str
    registers: int | None
    spills: int | None
    bytes_per_element: float


def run(options: argparse.Namespace) -> int:
    pipelines = [lower(p, INNER, OUTER, total=True) for p in programs(options.name)]
    targets = options.target.split(",") if options.target else default_targets()
    for target in targets:
        if target != "cpu":
            target_of(target)
    folder = Path(options.output) if options.output else None
    rows = list(compiled(pipelines, targets, folder))
    if options.json:
        show({"kernels": [row._asdict() for row in rows]})
    else:
        print("\n".join(table(rows)))
    return 0


def default_targets() -> list[str]:
    """Those that can be compiled for here."""
    return ["cpu", *(GPUS if available() else ())]


def compiled(
    pipelines: Sequence[Pipeline], targets: Sequence[str], folder: Path | None
) -> Iterator[Row]:
    """Compiles what is not kept from before, leaves sources and assembly in `folder`, says what came
    out."""
    kernels = {kernel.name: kernel for pipeline in pipelines for kernel in pipeline.kernels}
    sources: dict[str, str] = {}
    kept = folder / "build" if folder else cache_directory()
    for target in targets:
        if target == "cpu":
            sources["kernels.cpp"] = cpp.source(*pipelines)
            build(sources["kernels.cpp"], kept)
            yield from (Row(n, target, None, None, wire_bytes(k)) for n, k in kernels.items())
            continue
        compiler = Compiler(pipelines, kept)
        sources["kernels.py"] = compiler.text
        extension = EXTENSIONS[target.partition(":")[0]]
        for name, kernel in kernels.items():
            made = compiler.compile(kernel, target)
            sources[f"{name}.{target.replace(':', '_')}.{extension}"] = made.assembly
            yield Row(name, target, made.registers, made.spills, wire_bytes(kernel))
    if folder is not None:
        for name, text in sources.items():
            files.write_text(folder / name, text)


def wire_bytes(kernel: Kernel) -> float:
    """Bytes per element of the messages that a kernel writes, or else reads; 4 of flat numbers."""
    wire = kernel.target or kernel.source
    return wire.bytes_per_element if wire else 4.0


def table(rows: Sequence[Row]) -> Iterator[str]:
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
