"""Triton kernels give the reference's bits, and compile for GPUs without spills or byte stores."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plait.codegen.compression.triton import source
from plait.ir.compression.lower import lower
from plait.ir.compression.registry import PROGRAMS

WORKER = Path(__file__).with_name("triton_worker.py")
GPUS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx90a", "hip:gfx942")
MOST_REGISTERS = 96  # of a thread on sm_90
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def lowered():
    return [lower(program, 4, 2, total=True) for program in PROGRAMS.values()]


def test_every_kernel_is_python_under_its_name():
    text = source(*lowered())
    compile(text, "kernels.py", "exec")
    for pipeline in lowered():
        assert all(f"def {kernel.name}(" in text for kernel in pipeline.kernels)


@needs_triton
def test_every_kernel_equals_the_reference(tmp_path):
    """In an own process: the interpreter is chosen when Triton is imported."""
    done = subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path)], capture_output=True, text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(re.match(r"(\d+) kernels", done.stdout)[1]) > 150


def check(pipelines, targets, folder, monkeypatch):
    from plait.api.kernels import imported
    from plait.codegen.compression.ahead import compile_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "cache"))
    path = folder / "kernels.py"
    path.write_text(source(*pipelines))
    module = imported(path)
    for kernel in {k.name: k for p in pipelines for k in p.kernels}.values():
        for target in targets:
            made = compile_kernel(module, kernel, target)
            assert made.spills == 0, (kernel.name, target)
            if target == "cuda:90":
                assert made.registers <= MOST_REGISTERS, (kernel.name, made.registers)
            if target.startswith("cuda"):
                assert re.search(r"ld\.global\.v[24]", made.assembly), (kernel.name, target)
                assert not re.search(r"st\.global\.[bu]8", made.assembly), (kernel.name, target)


@needs_triton
def test_kernels_compile_ahead_of_time(tmp_path, monkeypatch):
    some = [lower(PROGRAMS[f"sdp4bit.{s}"], 4, 2, total=True) for s in ("weights", "gradients")]
    check(some, ("cuda:90", "hip:gfx942"), tmp_path, monkeypatch)


@needs_triton
@pytest.mark.long
def test_all_kernels_compile_for_all_gpus(tmp_path, monkeypatch):
    check(lowered(), GPUS, tmp_path, monkeypatch)
