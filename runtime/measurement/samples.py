"""Sample operators to measure a device with, as programs call them, at several sizes.

Inputs come in several sets that together exceed a cache, and calls go round them, so that operands
are as cold as in a program that has done other things in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import isqrt, prod
from typing import NamedTuple

import torch
from torch import Tensor

from ...ir.capture import resolve as _resolve  # noqa: F401  (registers our operators)
from ...ir.capture.operators.elementary import OPS
from ...ir.devices.curve import MAX_POINTS

CACHE_BYTES = 48 << 20
MOST_SETS = 24
HEAD = 64  # width of an attention head
QUICK_BYTES = tuple(4**n << 10 for n in range(1, 8))
FULL_BYTES = tuple(2**n << 10 for n in range(2, 18))
assert len(FULL_BYTES) < MAX_POINTS

Call = Callable[[], object]


class Sample(NamedTuple):
    """One operator at one size: `calls` are equal but for their operands."""

    name: str
    dtype: str
    by: str
    amount: float
    calls: list[Call]


def samples(device: torch.device, quick: bool) -> Iterator[Sample]:
    """Every operator at every size, made when asked for."""
    dtypes = [torch.float32] if quick else [torch.float32, torch.bfloat16]
    if device.type == "cuda":
        dtypes = [torch.float32, torch.bfloat16]
    for dtype in dtypes:
        for side in (32, 64, 128, 256, 512, 1024) + (() if quick else (192, 384, 768, 2048)):
            yield product(side, dtype, device)
        for tokens in (32, 128, 512) + (() if quick else (64, 256, 1024, 2048)):
            for random in (False, True):
                yield from attention(tokens, dtype, device, random)
    sizes = QUICK_BYTES if quick else FULL_BYTES
    for name, make in (ELEMENTWISE | ROWWISE).items():
        for size in sizes:
            yield streaming(name, make, size, device)


def product(side: int, dtype: torch.dtype, device: torch.device) -> Sample:
    """A product of square matrices, its second operand stored transposed as weights are."""
    item = torch.finfo(dtype).bits // 8
    sets = [
        [torch.randn(side, side, device=device, dtype=dtype) for _ in range(2)]
        for _ in range(set_count(2 * item * side * side))
    ]
    calls: list[Call] = [partial(_product, a, b) for a, b in sets]
    return Sample("gemm", name_of(dtype), "flops", 2.0 * side**3, calls)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b.t())


def attention(
    tokens: int, dtype: torch.dtype, device: torch.device, random: bool
) -> Iterator[Sample]:
    """Causal attention and its backward, with or without dropout."""
    samples_, heads = max(1, 1024 // tokens), 4
    shape = (samples_, heads, tokens, HEAD)
    key = torch.tensor([1, 0], dtype=torch.int64, device=device) if random else None
    index = full_offsets(samples_, heads, tokens, tokens) if random else []
    rest: list[object] = [True, HEAD**-0.5, 0.1 if random else 0.0, 0, index, [], []]
    count = samples_ * heads * tokens * tokens * HEAD  # as declared: the causal half is counted
    forwards: list[Call] = []
    backwards: list[Call] = []
    for _ in range(set_count(8 * samples_ * heads * tokens * HEAD)):
        q, k, v = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
        out, rows = OPS.attention(q, k, v, None, key, *rest)
        forwards.append(partial(OPS.attention, q, k, v, None, key, *rest))
        backwards.append(partial(OPS.attention_backward, out, q, k, v, None, key, out, rows, *rest))
    prefix = "random_" if random else ""
    yield Sample(f"{prefix}attention", name_of(dtype), "flops", 4 * count, forwards)
    yield Sample(f"{prefix}attention_backward", name_of(dtype), "flops", 10 * count, backwards)


Make = Callable[[Tensor, Tensor], Call]


def streaming(name: str, make: Make, size: int, device: torch.device) -> Sample:
    """An operator over matrices of `size` bytes; the amount is what it reads and makes."""
    columns = min(1024, max(16, isqrt(size // 4)))
    calls, amount = [], 0
    for _ in range(set_count(2 * size)):
        x, y = (torch.rand(size // 4 // columns, columns, device=device) + 0.5 for _ in range(2))
        calls.append(make(x, y))
        amount = size * PASSES.get(name, 2)
    return Sample(name, "float32", "bytes", float(amount), calls)


def set_count(size: int) -> int:
    return max(2, min(MOST_SETS, -(-CACHE_BYTES // max(size, 1))))


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def full_offsets(*shape: int) -> list[int]:
    """Shard offsets of an unsharded tensor: size, stride and start of every dimension."""
    strides = [prod(shape[i + 1 :]) for i in range(len(shape))]
    starts = [-1, *([0] * (len(shape) - 1))]
    return [n for part in zip(shape, strides, starts, strict=True) for n in part]


def _dropout(x: Tensor, _: Tensor) -> Call:
    key = torch.tensor([1, 0], dtype=torch.int64, device=x.device)
    index = full_offsets(*x.shape)
    return lambda: OPS.dropout(x, key, 0.1, 0, index)


def _cross_entropy(x: Tensor, _: Tensor) -> Call:
    labels = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    return lambda: OPS.cross_entropy(x, labels, -100, [])


def _cross_entropy_backward(x: Tensor, _: Tensor) -> Call:
    labels = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    rows = torch.logsumexp(x, -1)
    return lambda: OPS.cross_entropy_backward(rows, x, labels, rows, -100, [])


def _norm_backward(x: Tensor, y: Tensor) -> Call:
    weight, width = x[0].clone(), [x.shape[1]]
    _, mean, rstd = torch.native_layer_norm(x, width, weight, weight, 1e-5)
    backward = torch.ops.aten.native_layer_norm_backward
    return lambda: backward(y, x, width, mean, rstd, weight, weight, [True, True, True])


def _adamw(x: Tensor, y: Tensor) -> Call:
    leaf = x.clone().requires_grad_()
    leaf.grad = y
    return torch.optim.AdamW([leaf]).step


def _embedding_backward(x: Tensor, _: Tensor) -> Call:
    rows = torch.arange(x.shape[0], device=x.device)
    return lambda: torch.ops.aten.embedding_dense_backward(x, rows, x.shape[0], -1, False)


def _embedding(x: Tensor, _: Tensor) -> Call:
    rows = torch.arange(x.shape[0], device=x.device)
    return lambda: torch.nn.functional.embedding(rows, x)


ELEMENTWISE: dict[str, Make] = {
    "pointwise": lambda x, y: lambda: torch.sub(x, y),
    "add": lambda x, y: lambda: torch.add(x, y),
    "mul": lambda x, y: lambda: torch.mul(x, y),
    "div": lambda x, y: lambda: torch.div(x, y),
    "neg": lambda x, _: lambda: torch.neg(x),
    "clone": lambda x, _: lambda: torch.clone(x),
    "pow": lambda x, _: lambda: torch.pow(x, 2.0),
    "rsqrt": lambda x, _: lambda: torch.rsqrt(x),
    "exp": lambda x, _: lambda: torch.exp(x),
    "tanh": lambda x, _: lambda: torch.tanh(x),
    "tanh_backward": lambda x, y: lambda: torch.ops.aten.tanh_backward(x, y),
    "sigmoid": lambda x, _: lambda: torch.sigmoid(x),
    "silu": lambda x, _: lambda: torch.ops.aten.silu(x),
    "silu_backward": lambda x, y: lambda: torch.ops.aten.silu_backward(x, y),
    "gelu": lambda x, _: lambda: torch.ops.aten.gelu(x),
    "gelu_backward": lambda x, y: lambda: torch.ops.aten.gelu_backward(x, y),
    "relu": lambda x, _: lambda: torch.relu(x),
    "where": lambda x, y: lambda: torch.where(x > 1, x, y),
    "dropout": _dropout,
    "cat": lambda x, y: lambda: torch.cat([x, y]),
    "slice_backward": lambda x, _: (
        lambda: torch.ops.aten.slice_backward(x, [2 * x.shape[0], x.shape[1]], 0, 0, x.shape[0], 1)
    ),
    "move": lambda x, _: lambda: x.t().contiguous(),
    "accumulate": lambda x, y: lambda: torch.add(x, y),
    "adamw": _adamw,
}
ROWWISE: dict[str, Make] = {
    "reduce": lambda x, _: lambda: torch.amax(x, -1),
    "sum": lambda x, _: lambda: torch.sum(x, 0),
    "mean": lambda x, _: lambda: torch.mean(x, -1),
    "_softmax": lambda x, _: lambda: torch.softmax(x, -1),
    "native_layer_norm": lambda x, _: (
        lambda: torch.native_layer_norm(x, [x.shape[1]], x[0], x[0], 1e-5)
    ),
    "native_layer_norm_backward": _norm_backward,
    "cross_entropy": _cross_entropy,
    "cross_entropy_backward": _cross_entropy_backward,
    "embedding": _embedding,
    "embedding_dense_backward": _embedding_backward,
}
# matrices read and made; two unless said. AdamW touches weights and two states twice, and gradients.
# fmt: off
PASSES = {
    **dict.fromkeys(("pointwise", "add", "mul", "div", "tanh_backward", "silu_backward"), 3),
    "gelu_backward": 3, "where": 3, "cat": 4, "slice_backward": 3, "accumulate": 2, "adamw": 8,
    **dict.fromkeys(("reduce", "sum", "mean", "cross_entropy"), 1), "native_layer_norm_backward": 3,
}
# fmt: on
