"""Triton kernels compiled ahead of time, without a GPU: what they use of one, read from the binary."""

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

from ...ir.compression.kernel import Kernel, Pipeline
from ...ir.errors import UsageError
from .kept import Kept
from .triton import PRELUDE, arguments, source, work

FORMAT = "plait/compiled-kernel 1"
EXTENSIONS = {"cuda": "ptx", "hip": "amdgcn"}
CAPABILITIES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)  # LLVM ends the process at others
USED = re.compile(r"Function \S+:\s*REG:(\d+) STACK:(\d+)")


class Compiled(Struct, frozen=True):
    """A kernel for one target: registers of a thread, spills (bytes of stack by ptxas, registers on
    AMD), each None where the binary does not tell, and the assembly under `entry`."""

    registers: int | None
    spills: int | None
    entry: str
    assembly: str

    def named(self, name: str) -> Compiled:
        """The same under another name."""
        return replace(self, entry=name, assembly=self.assembly.replace(self.entry, name))


class Compiler:
    """Compiles the kernels of pipelines, equal ones once, and keeps what came out in `directory`."""

    def __init__(self, pipelines: Sequence[Pipeline], directory: Path) -> None:
        self.kept = Kept(directory)
        self.text = source(*pipelines)
        self.module: ModuleType | None = None

    def compile(self, kernel: Kernel, name: str) -> Compiled:
        """From the directory if it is there unharmed. Raises UsageError as `compile_kernel` does."""
        version = triton_module("triton").__version__
        how = [*kernel.launch_options.items(), *_divisors(arguments(kernel))]
        key = "\n".join([FORMAT, version, name, str(how), PRELUDE, work(kernel)])
        found = self.kept.get(key)
        if found is not None:
            return json.decode(found, type=Compiled).named(kernel.name)
        with tempfile.TemporaryDirectory(prefix="plait-triton-") as scratch:
            self.module = self.module or imported(self.text, Path(scratch))
            made = compile_kernel(self.module, kernel, name, Path(scratch))
        self.kept.put(key, json.encode(made))
        return made.named(kernel.name)


def imported(text: str, directory: Path) -> ModuleType:
    """The module of kernels that `triton.source` printed, by way of a file: Triton reads sources."""
    path = directory / "kernels.py"
    path.write_text(text)
    spec = spec_from_file_location("_plait_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def target_of(name: str) -> Any:
    """`cuda:90`, `hip:gfx942` as Triton's target. Raises UsageError for others, and without Triton."""
    kind, _, architecture = name.partition(":")
    if kind not in EXTENSIONS or not architecture or (kind == "cuda") != architecture.isdecimal():
        raise UsageError(f"unknown target {name!r}: write cpu, cuda:90 or hip:gfx942")
    if kind == "cuda" and int(architecture) not in CAPABILITIES:
        there = ", ".join(f"cuda:{one}" for one in CAPABILITIES)
        raise UsageError(f"Triton does not compile for {name!r}, but for {there}")
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


def compile_kernel(module: ModuleType, kernel: Kernel, name: str, scratch: Path) -> Compiled:
    """One kernel of a module that `triton.source` printed, for the target `name`, by way of files in
    `scratch`. Raises UsageError for targets that Triton does not compile for."""
    target = target_of(name)
    compiler, triton = triton_module("triton.compiler"), triton_module("triton")
    types = arguments(kernel)
    multiples = {
        (i,): [["tt.divisibility", multiple]]
        for i, multiple in enumerate(_divisors(types))
        if multiple > 1
    }
    function = getattr(module, kernel.name)
    asked = compiler.ASTSource(function, dict(types), {}, multiples)
    try:
        with triton.knobs.cache.scope(), triton.knobs.compilation.scope():
            triton.knobs.cache.dir = str(scratch)
            triton.knobs.compilation.disable_line_info = True  # of a file that will be gone
            made = triton.compile(asked, target=target, options=kernel.launch_options)
    except Exception as error:  # of a compiler that knows the target, or does not
        raise UsageError(f"{kernel.name} does not compile for {name}: {error}") from error
    if target.backend == "cuda":
        return Compiled(*_cuda_usage(made.asm["cubin"]), function.__name__, made.asm["ptx"])
    assembly = made.asm["amdgcn"]
    found = [
        int(match[1]) if (match := re.search(rf"\.{field}:\s*(\d+)", assembly)) else None
        for field in ("vgpr_count", "vgpr_spill_count")
    ]
    return Compiled(found[0], found[1], function.__name__, assembly)


def _divisors(types: Sequence[tuple[str, str]]) -> Iterator[int]:
    """What pointers (bytes), lengths and strides (elements) are multiples of: messages are aligned to
    16 bytes, and a stride follows its pointer."""
    element_bytes = 4
    for name, kind in types:
        if kind.startswith("*"):
            element_bytes = 2 if kind == "*i16" else 4
        aligned = kind.startswith("*") or name == "elements"
        yield 16 if aligned else 16 // element_bytes if name.endswith("stride") else 1


def _cuda_usage(binary: bytes) -> tuple[int, int]:
    """Registers and bytes of stack, by the `cuobjdump` that comes with Triton."""
    tools = Path(str(triton_module("triton").__file__)).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = subprocess.run(
            [str(tools / "cuobjdump"), "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        )
    match = USED.search(said.stdout + said.stderr)
    assert match is not None, said.stdout
    return int(match[1]), int(match[2])
