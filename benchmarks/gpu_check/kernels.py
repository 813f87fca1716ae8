"""Our operators on the GPU: the numbers of the CPU, and their share of memory bandwidth."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from plait.benchmarks.gpu_check.check import Machine, Row, check, row, timed_row
from plait.benchmarks.gpu_check.timing import copy_bandwidth, ratio, seconds
from plait.ir.capture.operators.elementary import OPS, call_key
from plait.ir.capture.operators.shard_offsets import full_index
from plait.ir.capture.resolve import resolve
from plait.tests.ir.ops.samples import SAMPLES

BOUND = 1e-9  # of float64


def moved(value: object, device: str) -> object:
    if isinstance(value, Tensor):
        return value.to(device)
    return list(value) if isinstance(value, tuple) else value


def difference(target: str, arguments: tuple[object, ...], device: str) -> float:
    """Largest difference of an operator's results between the device and the CPU, relative to 1."""
    operator = resolve(target)
    here, there = (operator(*(moved(a, d) for a in arguments)) for d in ("cpu", device))
    pairs = zip(*((r,) if isinstance(r, Tensor) else r for r in (here, there)), strict=True)
    gaps = [(one - other.cpu()).abs() / one.abs().clamp(min=1.0) for one, other in pairs]
    return max((float(gap.max()) for gap in gaps if gap.numel()), default=0.0)


@check("operators", f"within {BOUND:g} of the CPU in float64")
def operators(machine: Machine) -> Iterator[Row]:
    """Every operator of ours, on the samples by which its declaration is proved."""
    largest: dict[str, float] = {}
    for sample in SAMPLES:
        if sample.target.startswith("plait."):
            gap = difference(sample.target, sample.args, machine.device)
            largest[sample.target] = max(gap, largest.get(sample.target, 0.0))
    for target, gap in sorted(largest.items()):
        yield row(f"operators: {target}", f"≤ {BOUND:g}", f"{gap:.1e}", gap <= BOUND)


@check("dropout bits", "the mask of the CPU, bit by bit")
def dropout_bits(machine: Machine) -> Iterator[Row]:
    x = torch.ones(1 << (12 if machine.small else 22))
    key, index = torch.tensor([call_key(1, 2, 3), 0]), list(full_index(x.shape))
    masks = [OPS.dropout(x.to(d), key.to(d), 0.3, 5, index).cpu() for d in ("cpu", machine.device)]
    wrong = int((masks[0] != masks[1]).sum())
    yield row("dropout bits", "0 of all differ", f"{wrong} of {x.numel()}", wrong == 0)


@check("bandwidth", "share of a copy's bytes per second")
def bandwidth(machine: Machine) -> Iterator[Row]:
    """Operators that do nothing but read and write, against a copy."""
    most = copy_bandwidth(machine)
    yield row("bandwidth: copy", "> 0", f"{most / 1e9:.0f} GB/s", most > 0)
    rows, classes = (64, 512) if machine.small else (8192, 32000)
    logits = torch.randn(rows, classes, device=machine.device)
    labels = torch.randint(classes, (rows,), device=machine.device)
    losses, total = OPS.cross_entropy(logits, labels, -100, [])
    key = torch.tensor([call_key(1, 2, 3), 0], device=machine.device)
    index = list(full_index(logits.shape))
    saved = (losses, logits, labels, total, -100, [])
    calls = (
        ("cross_entropy", 1, 0.5, lambda: OPS.cross_entropy(logits, labels, -100, [])),
        ("cross_entropy_backward", 2, 0.5, lambda: OPS.cross_entropy_backward(*saved)),
        ("dropout", 2, 0.5, lambda: OPS.dropout(logits, key, 0.1, 1, index)),
    )
    for name, passes, bar, call in calls:
        share = passes * logits.nbytes / seconds(call, machine) / most
        text = f"{share:.0%}"
        yield timed_row(machine, f"bandwidth: {name}", f"≥ {bar:.0%}", text, share >= bar)


@check("attention", "time of ours ÷ torch's, forward and backward")
def attention(machine: Machine) -> Iterator[Row]:
    b, n, g, s, d = (1, 4, 2, 32, 8) if machine.small else (4, 32, 8, 2048, 128)
    dtype = torch.float32 if machine.small else torch.bfloat16
    for rate, bar in ((0.0, 1.05), (0.1, 1.0)):
        q, k, v = (
            torch.randn(b, h, s, d, device=machine.device, dtype=dtype, requires_grad=True)
            for h in (n, g, g)
        )
        key = torch.tensor([call_key(1, 2, 3), 0], device=machine.device)
        rest = (True, d**-0.5, rate, 5, list(full_index((b, n, s, s))) if rate else [], [], [])

        def ours(q=q, k=k, v=v, key=key, rest=rest) -> object:
            out = OPS.attention(q, k, v, None, key, *rest)[0]
            return torch.autograd.grad(out.sum(), (q, k, v))

        def theirs(q=q, k=k, v=v, rate=rate) -> object:
            options = {"dropout_p": rate, "is_causal": True, "enable_gqa": True}
            out = functional.scaled_dot_product_attention(q, k, v, **options)
            return torch.autograd.grad(out.sum(), (q, k, v))

        measured = ratio(ours, theirs, machine)
        name, text = f"attention: dropout {rate}", f"{measured:.2f}"
        yield timed_row(machine, name, f"≤ {bar}", text, measured <= bar)
