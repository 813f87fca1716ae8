"""Programs on one GPU: against eager torch and torch.compile, their planned peak and step time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plait.api.commands.calibrate import measured as calibrated
from plait.benchmarks.gpu_check.check import CannotRun, Machine, Row, check, row, timed_row
from plait.benchmarks.gpu_check.timing import peak_bytes, ratio, seconds
from plait.benchmarks.peers.models import Decoder, Sizes, gpt2, llama
from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.devices.cluster import Cluster
from plait.ir.errors import PlaitError
from plait.ir.plan.plan import Plan
from plait.ir.plan.program import Kernels
from plait.planner import PlanOptions, plan
from plait.runtime.launch.session import session
from plait.runtime.program import Program

Batch = dict[str, Tensor]
FACTORIES = {"gpt2": gpt2, "llama": llama}
BLOCKS = {"Llama-1B": (2048, 32), "Llama-8B": (4096, 32)}  # width and heads of a block
SMALL = Sizes(32, 2, 4, 64, 8, 4, dropout=0.0)


class Running(NamedTuple):
    """A program that is open, its plan, its module and a batch on the device."""

    program: Program
    plan: Plan
    module: nn.Module
    batch: Batch


def built(name: str, sizes: Sizes, dtype: torch.dtype) -> tuple[Decoder, Batch]:
    """A module on the CPU and a batch."""
    torch.manual_seed(0)
    tokens, labels = (torch.randint(sizes.vocabulary, (sizes.batch, sizes.length)) for _ in "tl")
    return FACTORIES[name](sizes).to(dtype).train(), {"tokens": tokens, "labels": labels}


def opened(
    source: tuple[Decoder, Batch], options: PlanOptions, kernels: Kernels, machine: Machine,
    cluster: Cluster | None = None,
) -> Running:  # fmt: skip
    """The program of one rank, opened on the machine's device."""
    module, batch = source
    model = trace(module, batch)
    planned = plan(model, cluster or load_cluster("1xh100"), options)
    with tempfile.TemporaryDirectory() as folder:
        write_program(compile_program(planned, model, kernels=kernels), Path(folder))
        program = Program.open(folder, module, torch.optim.AdamW, device=machine.device)
    return Running(program, planned, module, {k: v.to(machine.device) for k, v in batch.items()})


@check("block programs", "step ÷ eager's and torch.compile's")
def block_programs(machine: Machine) -> Iterator[Row]:
    """Two blocks of a Llama, with a small vocabulary, trained by a program and by torch."""
    dtype = torch.float32 if machine.small else torch.bfloat16
    for name, (width, heads) in BLOCKS.items():
        sizes = SMALL if machine.small else Sizes(width, 2, heads, 1024, 2048, 2, dropout=0.0)
        kinds: tuple[Kernels, ...] = ("aten", "inductor")
        for kernels in kinds:
            with session("gloo"):
                source = built("llama", sizes, dtype)
                options = PlanOptions(micro_batches=1, memory_actions=("keep",))
                running = opened(source, options, kernels, machine)
                eager = source[0].to(machine.device)
                if kernels == "inductor":
                    eager.compile()
                measured = ratio(ours(running), theirs(eager, running.batch), machine)
            label = "torch.compile" if kernels == "inductor" else "eager"
            what, text = f"block of {name} ÷ {label}", f"{measured:.2f}"
            yield timed_row(machine, what, "≤ 1", text, measured <= 1.0)


def ours(running: Running):
    """A step of a program."""
    return lambda: running.program.step(running.batch)


def theirs(module: nn.Module, batch: Batch):
    """A step of the same module with the same optimizer."""
    optimizer = torch.optim.AdamW(module.parameters())

    def step() -> None:
        optimizer.zero_grad()
        module(**batch).backward()
        optimizer.step()

    return step


@check("planned peak", "measured ≤ planned on 20 plans, slack ≤ 25 % in the median")
def planned_peak(machine: Machine) -> Iterator[Row]:
    """Models, memory actions and micro-batches; the peak of the device's allocator in a second step."""
    slacks: list[float] = []
    above = refused = 0
    plans = product(
        ("gpt2", "llama"), ("keep", "recompute", "save 50%", "split 2", "offload"), (1, 2)
    )
    for name, action, parts in plans:
        sizes = SMALL if machine.small else Sizes(1024, 4, 16, 8192, 512, 8, dropout=0.1)
        options = PlanOptions(micro_batches=parts, memory_actions=(action,))
        with session("gloo"):
            try:
                running = opened(built(name, sizes, torch.float32), options, "aten", machine)
            except PlaitError:  # no layer of this model can run so
                refused += 1
                continue
            promised = sum(
                n for term, n in running.plan.stages[0].memory_terms if term != "runtime"
            )
            running.program.step(running.batch)
            if machine.small:
                continue
            peak = peak_bytes(ours(running), machine)
            slacks.append(promised / peak - 1)
            above += peak > promised
            del running
    if not slacks:
        raise CannotRun(
            f"{20 - refused} programs ran, but there is no GPU to measure their peak on"
        )
    text = f"{above} of {len(slacks)} above, {refused} refused, median slack {median(slacks):.1%}"
    bar = "0 above, ≤ 25 %"
    yield row("planned peak", bar, text, above == 0 and median(slacks) <= 0.25)


@check("predicted step", "predicted ÷ measured within 15 % after calibrate")
def predicted_step(machine: Machine) -> Iterator[Row]:
    if machine.small:
        raise CannotRun("calibration of a GPU: there is none")
    cluster = calibrated(1, True, "gpu-check")
    for name in FACTORIES:
        sizes = Sizes(2048, 4, 16, 8192, 1024, 8, dropout=0.0)
        options = PlanOptions(micro_batches=1, memory_actions=("keep",))
        with session("gloo"):
            running = opened(built(name, sizes, torch.bfloat16), options, "aten", machine, cluster)
            measured = seconds(ours(running), machine)
        error = running.plan.prediction.step_seconds / measured - 1
        yield row(f"predicted step: {name}", "± 15 %", f"{error:+.1%}", abs(error) <= 0.15)
