"""Triton kernels give the reference's bits, and compile for GPUs without spills or byte stores."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from plait.codegen import compile_program, write_program
from plait.codegen.compression import aot
from plait.codegen.compression.aot import KernelCompiler, available
from plait.codegen.compression.triton import source
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.ir.compression.identity import uncompressed
from plait.ir.compression.lower import lower
from plait.ir.compression.registry import PROGRAMS
from plait.ir.errors import FileError, UsageError
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.compression.transports import load_codec
from plait.runtime.launch.launch import launch
from plait.tests.sampling import some

PROGRAM_WORKER = Path(__file__).with_name("triton_program_worker.py")
WORKER = Path(__file__).with_name("triton_worker.py")
GPUS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx90a", "hip:gfx942")
MOST_REGISTERS = 96  # of a thread on sm_90
MOST_SECONDS = 60.0  # of CPU, for all kernels and GPUs
needs_triton = pytest.mark.skipif(not available(), reason="Triton is not installed")


def lowered():
    return [lower(program, 4, 2, total=True) for program in PROGRAMS.values()]


CASES = {  # programs that a rank of two runs, and what travels compressed
    "zero": ("zero1=2", {"compress": "sdp4bit"}),
    "activations": ("pp=2", {"compress": "int8-activations", "micro_batches": 2}),
}


SOURCE = """\
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(144, 144) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).tanh()
        return x.square().mean()

def make():
    return Net(), {"x": torch.randn(256, 144)}
"""  # weights of 81 KiB are compressed, biases are not


def programs(folder, names):
    """Compiled programs of a small model by name."""
    (folder / "source.py").write_text(SOURCE)
    source = load_source(f"{folder / 'source.py'}:make")
    model = trace(source.model, source.batch, source.loss_fn)
    for name in names:
        strategy, chosen = CASES[name]
        options = PlanOptions(pins=pin_all(strategy), memory_actions=("keep",), **chosen)
        program = compile_program(plan(model, load_cluster("local:2"), options), model)
        write_program(program, folder / name)
        yield name, program


def test_a_program_has_every_kernel_that_a_gpu_runs(tmp_path):
    ((_, program),) = programs(tmp_path, ["zero"])
    (axis,) = program.table.compression
    text = dict(program.files)[axis.triton_source]
    for chosen in (axis.gradients, axis.weights):
        for one in (PROGRAMS[chosen], uncompressed(PROGRAMS[chosen])):
            for kernel in lower(one, 2, 1, total=True).kernels:
                assert re.search(rf"^(def {kernel.name}\(|{kernel.name} = \w+$)", text, re.M)
    if not available():
        with pytest.raises(UsageError, match="needs Triton"):
            load_codec(axis, tmp_path / "zero", torch.device("cuda"))
        return
    codec = load_codec(axis, tmp_path / "zero", torch.device("cuda"))
    assert (codec.name, codec.uncompressed) == ("Triton", codec)
    with pytest.raises(UsageError, match="has no kernel"):
        codec.run(lower(PROGRAMS["bf16.gradients"], 2).kernels[0], None)


@needs_triton
@pytest.mark.ranks
@pytest.mark.long
def test_ranks_train_by_triton_alone_with_the_bits_of_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    source = f"{tmp_path / 'source.py'}:make"
    jobs = {
        n: {"source": source, "folder": str(tmp_path / n)} for n, _ in programs(tmp_path, CASES)
    }
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    arguments = [str(PROGRAM_WORKER), str(tmp_path / "jobs.json"), str(tmp_path / "out.json")]
    launch(2, arguments, timeout_seconds=400)
    for row in json.loads((tmp_path / "out.json").read_text()):
        for name, result in row.items():
            assert result["same"], name
            assert len(result["kernels"]) > 1, name
            compiled, interpreted = result["said"]
            assert "compressed by C++ kernels" in compiled, name
            assert "compressed by Triton kernels" in interpreted, name


def test_every_kernel_is_python_under_its_name():
    text = source(*lowered())
    compile(text, "kernels.py", "exec")
    for pipeline in lowered():
        for kernel in pipeline.kernels:
            assert re.search(rf"^(def {kernel.name}\(|{kernel.name} = \w+$)", text, re.M)


@needs_triton
@pytest.mark.parametrize("share", some([32, 1], 2))
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
