"""Compile Triton kernels ahead of time, without a GPU, and read their resource usage."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import Struct, json
from msgspec.structs import replace

from ...ir.compression.kernel import CompressionKernel, KernelPipeline
from ...ir.errors import UsageError
from ...ir.files.private_cache import PrivateCache
from .triton import PRELUDE, arguments, kernel_signature, source

FORMAT = "plait/compiled-kernel 2"
EXTENSIONS = {"cuda": "ptx", "hip": "amdgcn"}
CAPABILITIES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)  # LLVM aborts on others
RESOURCE_USAGE = re.compile(r"Function \S+:\s*REG:(\d+) STACK:(\d+)")


class CompiledKernel(Struct, frozen=True):
    """A kernel compiled for one target; `assembly` defines `symbol`.

    `registers` per thread; `spills` in bytes of stack (CUDA) or in registers (AMD). Both are None
    where the binary does not say.
    """

    registers: int | None
    spills: int | None
    symbol: str
    assembly: str

    def named(self, name: str) -> CompiledKernel:
        """Return the kernel with `symbol` renamed to `name`."""
        return replace(self, symbol=name, assembly=self.assembly.replace(self.symbol, name))


class KernelCompiler:
    """Compiles the kernels of pipelines, equal ones once, and caches results in `directory`."""

    def __init__(self, pipelines: Sequence[KernelPipeline], directory: Path) -> None:
        self.cache = PrivateCache(directory)
        self.text = source(*pipelines)
        self.module: ModuleType | None = None

    def compile(self, kernel: CompressionKernel, name: str) -> CompiledKernel:
        """Compile `kernel` for target `name`, or read it from the cache. Raises UsageError."""
        version = triton_module("triton").__version__
        options = [*kernel.launch_options.items(), *_divisors(arguments(kernel))]
        key = "\n".join([FORMAT, version, name, str(options), PRELUDE, kernel_signature(kernel)])
        cached = self.cache.get(key)
        if cached is not None:
            return json.decode(cached, type=CompiledKernel).named(kernel.name)
        with tempfile.TemporaryDirectory(prefix="plait-triton-") as scratch:
            self.module = self.module or imported(self.text, Path(scratch))
            compiled = compile_kernel(self.module, kernel, name, Path(scratch))
        self.cache.put(key, json.encode(compiled))
        return compiled.named(kernel.name)


def imported(text: str, directory: Path) -> ModuleType:
    """Import the module printed by `triton.source` from a file, since Triton reads sources."""
    path = directory / "kernels.py"
    path.write_text(text)
    spec = spec_from_file_location("_plait_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def target_of(name: str) -> Any:
    """Parse `cuda:90` or `hip:gfx942` as a Triton GPUTarget. Raises UsageError."""
    kind, _, architecture = name.partition(":")
    if kind not in EXTENSIONS or not architecture or (kind == "cuda") != architecture.isdecimal():
        raise UsageError(f"unknown target {name!r}: write cpu, cuda:90 or hip:gfx942")
    if kind == "cuda" and int(architecture) not in CAPABILITIES:
        supported = ", ".join(f"cuda:{number}" for number in CAPABILITIES)
        raise UsageError(f"Triton does not compile for {name!r}, but for {supported}")
    gpu = triton_module("triton.backends.compiler").GPUTarget
    return gpu("cuda", int(architecture), 32) if kind == "cuda" else gpu("hip", architecture, 64)


def available() -> bool:
    """Whether Triton's compiler is installed."""
    try:
        triton_module("triton.compiler")
    except UsageError:
        return False
    return True


def triton_module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise UsageError(
            "kernels for GPUs need Triton: pip install 'plait[triton]'; --target cpu needs a C++ "
            "compiler only"
        ) from None


def compile_kernel(
    module: ModuleType, kernel: CompressionKernel, name: str, scratch: Path
) -> CompiledKernel:
    """Compile one kernel of a module printed by `triton.source` for target `name`.

    `scratch` is a folder for temporary files. Raises UsageError where Triton cannot compile it.
    """
    target = target_of(name)
    compiler, triton = triton_module("triton.compiler"), triton_module("triton")
    types = arguments(kernel)
    divisibility = {
        (i,): [["tt.divisibility", multiple]]
        for i, multiple in enumerate(_divisors(types))
        if multiple > 1
    }
    function = getattr(module, kernel.name)
    ast_source = compiler.ASTSource(function, dict(types), {}, divisibility)
    try:
        with triton.knobs.cache.scope(), triton.knobs.compilation.scope():
            triton.knobs.cache.dir = str(scratch)
            triton.knobs.compilation.disable_line_info = True  # the source file is temporary
            compiled = triton.compile(ast_source, target=target, options=kernel.launch_options)
    except Exception as error:  # compilers raise their own kinds
        raise UsageError(f"{kernel.name} does not compile for {name}: {error}") from error
    if target.backend == "cuda":
        return CompiledKernel(
            *_cuda_usage(compiled.asm["cubin"]), function.__name__, compiled.asm["ptx"]
        )
    assembly = compiled.asm["amdgcn"]
    counts = [
        int(match[1]) if (match := re.search(rf"\.{field}:\s*(\d+)", assembly)) else None
        for field in ("vgpr_count", "vgpr_spill_count")
    ]
    return CompiledKernel(counts[0], counts[1], function.__name__, assembly)


def _divisors(types: Sequence[tuple[str, str]]) -> Iterator[int]:
    """Divisor of every argument: pointers in bytes, lengths and strides in elements.

    Messages are aligned to 16 bytes; a stride argument follows its pointer.
    """
    element_bytes = 4
    for name, kind in types:
        if kind.startswith("*"):
            element_bytes = 2 if kind == "*i16" else 4
        aligned = kind.startswith("*") or name == "elements"
        yield 16 if aligned else 16 // element_bytes if name.endswith("stride") else 1


def _cuda_usage(binary: bytes) -> tuple[int, int]:
    """Registers and bytes of stack, read by the `cuobjdump` that ships with Triton."""
    tools = Path(str(triton_module("triton").__file__)).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        completed = subprocess.run(
            [str(tools / "cuobjdump"), "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        )
    match = RESOURCE_USAGE.search(completed.stdout + completed.stderr)
    assert match is not None, completed.stdout
    return int(match[1]), int(match[2])
