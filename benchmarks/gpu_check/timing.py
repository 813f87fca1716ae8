"""Seconds and bytes of calls on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from plait.benchmarks.gpu_check.check import CannotRun, Machine

Call = Callable[[], object]
ROUNDS, WARM = 9, 3


def seconds(call: Call, machine: Machine) -> float:
    """Median seconds of a call, to the end of what it launched."""
    for _ in range(WARM):
        call()
    times = []
    for _ in range(ROUNDS):
        machine.wait()
        start = time.perf_counter()
        call()
        machine.wait()
        times.append(time.perf_counter() - start)
    return median(times)


def ratio(ours: Call, theirs: Call, machine: Machine) -> float:
    """Median of ours over theirs, rounds alternating."""
    for _ in range(WARM):
        ours()
        theirs()
    ratios = []
    for _ in range(ROUNDS):
        spent = []
        for call in (ours, theirs):
            machine.wait()
            start = time.perf_counter()
            call()
            machine.wait()
            spent.append(time.perf_counter() - start)
        ratios.append(spent[0] / spent[1])
    return median(ratios)


def copy_bandwidth(machine: Machine) -> float:
    """Bytes per second, read and written, of a large copy: what memory gives at most."""
    x = torch.empty((1 << 22) if machine.small else (1 << 28), device=machine.device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / seconds(lambda: y.copy_(x), machine)


def peak_bytes(call: Call, machine: Machine) -> int:
    """Most bytes of tensors at once in a call, those from before among them.

    Raises CannotRun on a CPU, whose allocator does not count.
    """
    if machine.device != "cuda":
        raise CannotRun("the peak of a device's allocator: there is no GPU")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    machine.wait()
    return torch.cuda.max_memory_allocated()
