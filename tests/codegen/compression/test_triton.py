"""Triton kernels give the reference's bits, and compile for GPUs without spills or byte stores."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from plait.codegen.compression import aot
from plait.codegen.compression.aot import KernelCompiler, available
from plait.codegen.compression.triton import source
from plait.ir.compression.lower import lower
from plait.ir.compression.registry import PROGRAMS
from plait.ir.errors import FileError
from plait.tests.sampling import some

WORKER = Path(__file__).with_name("triton_worker.py")
GPUS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx90a", "hip:gfx942")
MOST_REGISTERS = 96  # of a thread on sm_90
MOST_SECONDS = 60.0  # of CPU, for all kernels and GPUs
needs_triton = pytest.mark.skipif(not available(), reason="Triton is not installed")


def lowered():
    return [lower(program, 4, 2, total=True) for program in PROGRAMS.values()]


def test_every_kernel_is_python_under_its_name():
    text = source(*lowered())
    compile(text, "kernels.py", "exec")
    for pipeline in lowered():
        for kernel in pipeline.kernels:
            assert re.search(rf"^(def {kernel.name}\(|{kernel.name} = \w+$)", text, re.M)


@needs_triton
@pytest.mark.parametrize("share", some([16, 1], 2))
def test_every_kernel_equals_the_reference(share, tmp_path):
    """In an own process: the interpreter is chosen when Triton is imported."""
    done = subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path), str(share)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(re.match(r"(\d+) kernels", done.stdout)[1]) > 150 // share


def check(pipelines, targets, folder):
    compiler = KernelCompiler(pipelines, folder / "kept")
    for kernel in {k.name: k for p in pipelines for k in p.kernels}.values():
        for target in targets:
            binary = compiler.compile(kernel, target)
            assert binary.spills == 0, (kernel.name, target)
            assert binary.registers > 0
            if target == "cuda:90":
                assert binary.registers <= MOST_REGISTERS, (kernel.name, binary.registers)
            if target.startswith("cuda"):
                widest = "v2" if narrow(kernel) else "v4"
                loads = rf"ld\.global\S*\.({widest}\.b32|v2\.b64|v8\.b32|v4\.b64)"
                assert re.search(loads, binary.assembly), (kernel.name, target)
                assert not re.search(r"st\.global\S*\.[bsu]8\b", binary.assembly), (
                    kernel.name,
                    target,
                )


def narrow(kernel):
    """Four bits read by 128 threads: 8 bytes each."""
    return kernel.source is not None and kernel.source.bits == 4 and kernel.warps == 4


@needs_triton
def test_kernels_compile_ahead_of_time(tmp_path):
    some = [lower(PROGRAMS[f"sdp4bit.{s}"], 4, 2, total=True) for s in ("weights", "gradients")]
    check(some, ("cuda:90", "hip:gfx942"), tmp_path)


@needs_triton
def test_spills_are_seen(tmp_path):
    """A tile that no thread block has registers for."""
    pipeline = lower(PROGRAMS["dithering.gradients"], 4, 2)
    kernel = replace(pipeline.kernels[0], tile=1 << 15)
    compiler = KernelCompiler([replace(pipeline, steps=(kernel,))], tmp_path / "kept")
    assert compiler.compile(kernel, "cuda:90").spills > 0


@needs_triton
def test_what_was_compiled_is_kept_and_checked(tmp_path, monkeypatch):
    pipelines = [lower(PROGRAMS["bf16.gradients"], 4, 2)]
    kernel = pipelines[0].kernels[0]
    cache_file = KernelCompiler(pipelines, tmp_path / "kept").compile(kernel, "cuda:90")
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])  # cut off: compiled anew
    assert KernelCompiler(pipelines, tmp_path / "kept").compile(kernel, "cuda:90") == cache_file
    assert file.read_bytes() == whole
    monkeypatch.setattr(aot, "compile_kernel", None)
    again = KernelCompiler(pipelines, tmp_path / "kept").compile(
        replace(kernel, name="other"), "cuda:90"
    )
    assert again == cache_file.named("other")
    assert ".entry other(" in again.assembly
    (tmp_path / "kept").chmod(0o777)
    with pytest.raises(FileError, match="others"):
        KernelCompiler(pipelines, tmp_path / "kept")


@needs_triton
@pytest.mark.long
def test_all_kernels_compile_for_all_gpus(tmp_path):
    before = os.times()
    check(lowered(), GPUS, tmp_path)
    spent = sum(os.times()[:4]) - sum(before[:4])
    assert spent < MOST_SECONDS, f"{spent} s of CPU"
