"""Triton kernels compiled ahead of time, without a GPU: what they use of one, read from the binary."""

from __future__ import annotations

import re
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ...ir.compression.kernel import Kernel
from ...ir.errors import UsageError
from .triton import arguments

WARPS = 4
EXTENSIONS = {"cuda": "ptx", "hip": "amdgcn"}
USED = re.compile(r"Function \S+:\s*REG:(\d+) STACK:(\d+)")


class Compiled(NamedTuple):
    """A kernel for one target: registers of a thread, spilled ones, and the assembly."""

    registers: int
    spills: int
    assembly: str


def target_of(name: str) -> Any:
    """`cuda:90`, `hip:gfx942` as Triton's target. Raises UsageError for others, and without Triton."""
    kind, _, architecture = name.partition(":")
    if kind not in EXTENSIONS or not architecture or (kind == "cuda") != architecture.isdecimal():
        raise UsageError(f"unknown target {name!r}: write cpu, cuda:90 or hip:gfx942")
    gpu = triton_module("triton.backends.compiler").GPUTarget
    return gpu("cuda", int(architecture), 32) if kind == "cuda" else gpu("hip", architecture, 64)


def triton_module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise UsageError(
            "kernels for GPUs need Triton: pip install 'plait[triton]'; --target cpu needs a C++ "
            "compiler only"
        ) from None


def compile_kernel(module: ModuleType, kernel: Kernel, name: str) -> Compiled:
    """One kernel of a module that `triton.source` printed, for the target `name`."""
    target = target_of(name)
    compiler, triton = triton_module("triton.compiler"), triton_module("triton")
    types = arguments(kernel)
    multiples = {
        (i,): [["tt.divisibility", 16 if kind.startswith("*") or argument == "elements" else 4]]
        for i, (argument, kind) in enumerate(types)
        if kind.startswith("*") or argument == "elements" or argument.endswith("stride")
    }
    source = compiler.ASTSource(getattr(module, kernel.name), dict(types), {}, multiples)
    try:
        options = {"num_warps": WARPS, "enable_fp_fusion": False}
        made = triton.compile(source, target=target, options=options)
    except Exception as error:  # of a compiler that knows the target, or does not
        raise UsageError(f"{kernel.name} does not compile for {name}: {error}") from error
    if target.backend == "cuda":
        return Compiled(*_cuda_usage(made.asm["cubin"]), made.asm["ptx"])
    assembly = made.asm["amdgcn"]
    found = [
        int(match[1]) if (match := re.search(rf"\.{field}:\s*(\d+)", assembly)) else 0
        for field in ("vgpr_count", "vgpr_spill_count")
    ]
    return Compiled(found[0], found[1], assembly)


def _cuda_usage(binary: bytes) -> tuple[int, int]:
    """Registers and bytes of stack, by the `cuobjdump` that comes with Triton."""
    tools = Path(str(triton_module("triton").__file__)).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = subprocess.run(
            [str(tools / "cuobjdump"), "-res-usage", file.name],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    match = USED.search(said.stdout + said.stderr)
    assert match is not None, said.stdout
    return int(match[1]), int(match[2])
