"""Plait's own operators: attention, dropout and cross entropy, each one differentiable torch op.

Random masks are counter-based: whether element i of a tensor is dropped depends on the key, the
operator's stream id and i, its index in the full tensor; so a shard computes its shard of one mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .shard_offsets import positions, shard_positions, to_local_positions

LIBRARY = torch.library.Library("plait", "DEF")
OPS = torch.ops.plait

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))

# Where operators that draw a mask have its rate, its stream and the index of its elements.
MASK_ARGUMENTS = {"plait.dropout.default": (2, 3, 4), "plait.attention.default": (7, 8, 9)}
UNIFORM = "plait.uniform.default"


class BlockElements(NamedTuple):
    """Elements that are worked on at once: on a CPU as many as its caches take, on others as few as
    fill the device, so that what is beside operands and results stays small."""

    cpu: int
    other: int

    def of(self, x: Tensor) -> int:
        return self.cpu if x.device.type == "cpu" else self.other


MASK = BlockElements(1 << 14, 1 << 20)  # their states are int64
LOGITS = BlockElements(1 << 18, 1 << 24)


def _signed(state: int) -> int:
    state &= _MASK
    return state - (1 << 64) if state >> 63 else state


def _mix(state: int) -> int:
    """splitmix64's finaliser (Steele, Lea, Flood 2014) on a Python integer."""
    for shift, factor in _MIX:
        state = ((state ^ (state >> shift)) * factor) & _MASK
    return state ^ (state >> 31)


def _mix_tensor(state: Tensor) -> Tensor:
    """`_mix` on int64 tensors: products wrap, right shifts are made unsigned."""
    for shift, factor in _MIX:
        state = (state ^ _shift(state, shift)) * _signed(factor)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def call_key(seed: int, step: int, call_index: int) -> int:
    """The seed hash of one call in one step: element 0 of the call's key tensor."""
    state = _mix((seed + _GAMMA) & _MASK)
    for number in (step, call_index):
        state = _mix((state + (number + 1) * _GAMMA) & _MASK)
    return _signed(state)


def random_bits(key: Tensor, stream_id: int, index: list[int]) -> Tensor:
    """53 random bits of every element, flat, in the order of `index`.

    `key`: int64 [seed hash, first row]. `index`: shard offsets of the elements; a start of -1
    stands for the first row.
    """
    return _bits_at(key, stream_id, positions(index, key.device, key[1]).reshape(-1))


def stream_seed(seed: int, stream_id: int) -> int:
    """The state that a stream of random numbers starts at, unsigned; `seed` is that of its call."""
    return _mix((seed + (stream_id + 1) * _GAMMA) & _MASK)


def _bits_at(key: Tensor, stream_id: int, position: Tensor) -> Tensor:
    """53 random bits of the elements at these positions in the full tensor."""
    stream = _mix_tensor(key[0] + _signed((stream_id + 1) * _GAMMA))
    return _shift(_mix_tensor(stream + (position + 1) * _signed(_GAMMA)), 11)


def dropout_mask(key: Tensor, p: float, stream_id: int, index: list[int]) -> Tensor:
    """Which elements dropout keeps: where their 53 random bits reach p * 2^53 (see `random_bits`)."""
    return random_bits(key, stream_id, index) >= int(p * (1 << 53))


def widened(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, for sums and exponentials; others unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def wide_dtype(x: Tensor) -> torch.dtype:
    """The type of `widened`."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


# dropout


def _dropout(x: Tensor, key: Tensor, p: float, stream_id: int, index: list[int]) -> Tensor:
    if p >= 1.0:
        return x.new_zeros(x.shape)
    out = x.new_empty(x.shape)
    rows = x.contiguous().view(1, -1)
    OPS.dropout_rows(rows, out.view(1, -1), key, p, stream_id, index, 0)
    return out


def _dropout_fake(x: Tensor, key: Tensor, p: float, stream_id: int, index: list[int]) -> Tensor:
    return x.new_empty(x.shape)


def reference_dropout_rows(
    x: Tensor,
    out: Tensor,
    key: Tensor,
    p: float,
    stream_id: int,
    index: list[int],
    first: int,
    row_step: int = 0,
) -> None:
    """Dropout of `x` [rows, columns] into `out`, which may be `x`. Its element (r, c) has number
    `first + r * row_step + c` in the shard that `index` describes."""
    scale = 0.0 if p >= 1.0 else 1.0 / (1.0 - p)
    for rows, columns in tiles(x, MASK.of(x)):
        numbers = first + torch.arange(rows.start, rows.stop, device=x.device) * row_step
        places = torch.arange(columns.start, columns.stop, device=x.device)
        position = shard_positions(numbers.unsqueeze(1) + places, index, key[1])
        keep = _bits_at(key, stream_id, position) >= int(p * (1 << 53))
        out[rows, columns] = torch.where(keep, x[rows, columns] * scale, 0.0)


def tiles(x: Tensor, elements: int) -> Iterator[tuple[slice, slice]]:
    """Parts of a matrix, of rows and columns, with at most so many elements each."""
    rows, columns = x.shape
    width = min(columns, elements)
    height = max(elements // max(width, 1), 1)
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            yield (slice(row, min(row + height, rows)), slice(column, min(column + width, columns)))


def _dropout_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.rest = inputs[2:]


def _dropout_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (key,) = ctx.saved_tensors
    return OPS.dropout(gradient, key, *ctx.rest), None, None, None, None


# cross entropy


def _cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, classes: list[int]
) -> tuple[Tensor, Tensor]:
    assert not classes, "shards of the classes are combined by the runtime"
    valid = labels != ignore_index
    picked = label_logits(logits, labels, valid, [])
    columns = torch.where(valid, labels, 0).unsqueeze(1)
    chosen = torch.empty_like(picked)
    for rows in _blocks_of_rows(logits):
        normal = torch.log_softmax(widened(logits[rows]), -1)  # torch's quickest kernel
        chosen[rows] = normal.gather(1, columns[rows]).squeeze(1)
    logsumexp = picked - chosen
    infinite = ~logsumexp.isfinite()  # as are labels of which the logit is
    if bool(infinite.any()):
        logsumexp[infinite] = torch.logsumexp(widened(logits[infinite]), -1)
    return torch.where(valid, logsumexp - picked, 0.0).to(logits.dtype), logsumexp


def exponentials_total(logits: Tensor, peak: Tensor) -> Tensor:
    """The sum of exp(logits - peak) over the classes, per row."""
    total = torch.empty_like(peak)
    for rows in _blocks_of_rows(logits):
        total[rows] = (widened(logits[rows]) - peak[rows].unsqueeze(1)).exp_().sum(-1)
    return total


def _blocks_of_rows(logits: Tensor) -> Iterator[slice]:
    """Whole rows at a time."""
    height = max(LOGITS.of(logits) // max(logits.shape[1], 1), 1)
    return (slice(row, row + height) for row in range(0, len(logits), height))


def _cross_entropy_fake(
    logits: Tensor, labels: Tensor, ignore_index: int, classes: list[int]
) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    return logits.new_empty(rows), logits.new_empty(rows, dtype=wide_dtype(logits))


def label_logits(logits: Tensor, labels: Tensor, valid: Tensor, classes: list[int]) -> Tensor:
    """The logit of each row's label, widened, 0 where the label is not in this shard of `classes`."""
    shard = classes or [logits.shape[1], 1, 0]
    columns, here = to_local_positions(torch.where(valid, labels, 0), shard)
    return torch.where(here, widened(logits.gather(1, columns.unsqueeze(1)).squeeze(1)), 0.0)


def _cross_entropy_backward(
    gradient: Tensor,
    logits: Tensor,
    labels: Tensor,
    logsumexp: Tensor,
    ignore_index: int,
    classes: list[int],
) -> Tensor:
    valid = labels != ignore_index
    shard = classes or [logits.shape[1], 1, 0]
    columns, here = to_local_positions(torch.where(valid, labels, 0), shard)
    columns, picked = columns.unsqueeze(1), -here.to(logsumexp.dtype).unsqueeze(1)
    upper = torch.where(valid, gradient.to(logsumexp.dtype), 0.0).unsqueeze(1)
    result = logits.new_empty(logits.shape)
    for rows in _blocks_of_rows(logits):
        part = result[rows] if result.dtype == logsumexp.dtype else widened(result[rows])
        if classes:
            torch.sub(logits[rows], logsumexp[rows].unsqueeze(1), out=part).exp_()
        else:  # one kernel, where a shard would not sum to 1
            torch.softmax(widened(logits[rows]), -1, out=part)
        part.scatter_add_(1, columns[rows], picked[rows]).mul_(upper[rows])
        if result.dtype != logsumexp.dtype:
            result[rows] = part
    return result


def _cross_entropy_backward_fake(gradient: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


def _cross_entropy_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.ignore_index = inputs[2]


def _cross_entropy_gradient(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    logits, labels, logsumexp = ctx.saved_tensors
    rest = (logits, labels, logsumexp, ctx.ignore_index)
    return OPS.cross_entropy_backward(gradient, *rest, []), None, None, None


KERNELS: dict[str, Any] = {}  # by operator


def register(schema: str, kernel: Any, fake: Any) -> None:
    """Define one operator with one kernel for every device and its shape function."""
    name = schema.split("(")[0]
    KERNELS[f"plait::{name}"] = kernel
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f"plait::{name}", fake, lib=LIBRARY)


LIBRARY.define(
    "dropout_rows(Tensor x, Tensor(a!) out, Tensor key, float p, int stream_id, int[] index, "
    "int first, int row_step=0) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# of any device that has no kernel of its own
LIBRARY.impl("dropout_rows", reference_dropout_rows, "CompositeExplicitAutograd")
torch.library.register_fake("plait::dropout_rows", lambda *_: None, lib=LIBRARY)
register(
    "dropout(Tensor x, Tensor key, float p, int stream_id, int[] index) -> Tensor",
    _dropout,
    _dropout_fake,
)
torch.library.register_autograd(
    "plait::dropout", _dropout_gradient, setup_context=_dropout_context, lib=LIBRARY
)
register(
    "cross_entropy(Tensor logits, Tensor labels, int ignore_index, int[] classes)"
    " -> (Tensor, Tensor)",
    _cross_entropy,
    _cross_entropy_fake,
)
register(
    "cross_entropy_backward(Tensor gradient, Tensor logits, Tensor labels, Tensor logsumexp, "
    "int ignore_index, int[] classes) -> Tensor",
    _cross_entropy_backward,
    _cross_entropy_backward_fake,
)
torch.library.register_autograd(
    "plait::cross_entropy",
    _cross_entropy_gradient,
    setup_context=_cross_entropy_context,
    lib=LIBRARY,
)
