"""`plait kernels`: the kernels of a compression program, as source and compiled for targets."""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ..codegen.compression import cpp, triton
from ..codegen.compression.ahead import compile_kernel, target_of
from ..ir.compression.kernel import Kernel, Pipeline
from ..ir.compression.lower import lower
from ..ir.compression.registry import programs
from ..ir.errors import UsageError
from ..runtime.compression.native import build
from . import documents
from .asked import show

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
    with tempfile.TemporaryDirectory(prefix="plait-kernels-") as scratch:
        rows = list(compiled(pipelines, targets, folder or Path(scratch)))
    if options.json:
        show({"kernels": [row._asdict() for row in rows]})
    else:
        print("\n".join(table(rows)))
    return 0


def default_targets() -> list[str]:
    """Those that can be compiled for here."""
    return ["cpu", *(GPUS if importlib.util.find_spec("triton") else ())]


def compiled(pipelines: Sequence[Pipeline], targets: Sequence[str], folder: Path) -> Iterator[Row]:
    """Writes the sources to `folder`, compiles them there, and says what came out."""
    folder.mkdir(parents=True, exist_ok=True)
    kernels = {kernel.name: kernel for pipeline in pipelines for kernel in pipeline.kernels}
    if "cpu" in targets:
        text = cpp.source(*pipelines)
        documents.write_text(folder / "kernels.cpp", text)
        build(text, folder / "build")
        yield from (Row(name, "cpu", None, None, wire_bytes(k)) for name, k in kernels.items())
    others = [target for target in targets if target != "cpu"]
    if not others:
        return
    documents.write_text(folder / "kernels.py", triton.source(*pipelines))
    with cached(folder / "build"):
        module = imported(folder / "kernels.py")
        for target in others:
            for name, kernel in kernels.items():
                made = compile_kernel(module, kernel, target)
                extension = "ptx" if target.startswith("cuda") else "amdgcn"
                file = folder / f"{name}.{target.replace(':', '_')}.{extension}"
                documents.write_text(file, made.assembly)
                yield Row(name, target, made.registers, made.spills, wire_bytes(kernel))


class cached:
    """Triton keeps what it compiled in a private directory for as long as this lasts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.before = os.environ.get("TRITON_CACHE_DIR")
        os.environ["TRITON_CACHE_DIR"] = str(self.directory)

    def __exit__(self, *_: object) -> None:
        if self.before is None:
            del os.environ["TRITON_CACHE_DIR"]
        else:
            os.environ["TRITON_CACHE_DIR"] = self.before


def imported(path: Path) -> ModuleType:
    """The module of kernels that has just been printed."""
    spec = importlib.util.spec_from_file_location("_plait_kernels", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
