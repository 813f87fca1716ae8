"""Samples of whole layers: normalisations, attention, losses, convolutions."""

from __future__ import annotations

from typing import Any

import torch

from plait.ir.capture.operators.elementary import OPS
from plait.ir.capture.operators.shard_offsets import full_index
from plait.tests.ir.ops.drawn import F64, below, of, real
from plait.tests.ir.ops.shards import Sample


def _layer_norm(shape: tuple[int, ...], inner: list[int], affine: bool = True) -> list[Sample]:
    x, upper = real(*shape), real(*shape)
    weight, bias = (real(*inner), real(*inner)) if affine else (None, None)
    _, mean, rstd = torch.native_layer_norm(x, inner, weight, bias, 1e-5)
    mask = [True, affine, affine]
    unused = () if affine else (1, 2)
    return [
        of("native_layer_norm", x, inner, weight, bias, 1e-5),
        of("layer_norm", x, inner, weight, bias),
        of("rms_norm", x, inner, weight),
        of("_fused_rms_norm", x, inner, weight, 1e-5),
        of(
            "native_layer_norm_backward",
            upper,
            x,
            inner,
            mean,
            rstd,
            weight,
            bias,
            mask,
            unused=unused,
        ),
    ]


def _batch_norm_parts(shape: tuple[int, ...], affine: bool = True) -> list[Sample]:
    x, upper, mean = real(*shape), real(*shape), real(shape[1])
    inverse = torch.rand(shape[1], dtype=F64) + 0.5
    weight, bias = (real(shape[1]), real(shape[1])) if affine else (None, None)
    saved = (upper, x, mean, inverse)
    return [
        of("plait.square_deviation.default", x, mean),
        of("plait.batch_norm.default", x, mean, inverse, weight, bias),
        of("plait.batch_norm_sums.default", *saved),
        of("plait.batch_norm_backward.default", *saved, weight, real(shape[1]), real(shape[1])),
    ]


def _group_norm(shape: tuple[int, ...], groups: int) -> list[Sample]:
    x, upper, weight, bias = real(*shape), real(*shape), real(shape[1]), real(shape[1])
    sizes = (shape[0], shape[1], x[0, 0].numel(), groups)
    _, mean, rstd = torch.native_group_norm(x, weight, bias, *sizes, 1e-5)
    mask = [True, True, True]
    return [
        of("native_group_norm", x, weight, bias, *sizes, 1e-5),
        of("native_group_norm_backward", upper, x, mean, rstd, weight, *sizes, mask),
    ]


def _batch_norm(shape: tuple[int, ...]) -> list[Sample]:
    x, upper = real(*shape), real(*shape)
    weight, bias, mean = (real(shape[1]) for _ in range(3))
    variance = torch.rand(shape[1], dtype=F64) + 0.5
    operands = (x, weight, bias)
    _, mu, rstd = torch.native_batch_norm(*operands, None, None, True, 0.1, 1e-5)
    mask = [True, True, True]
    backward, empty = "native_batch_norm_backward", (weight, mean, variance)
    return [
        of("native_batch_norm", *operands, None, None, True, 0.1, 1e-5),
        of("native_batch_norm", *operands, mean, variance, False, 0.1, 1e-5, unused=(1, 2)),
        of("_native_batch_norm_legit.no_stats", *operands, True, 0.1, 1e-5),
        of("_native_batch_norm_legit_functional", *operands, mean, variance, True, 0.1, 1e-5),
        of("batch_norm", *operands, mean, variance, False, 0.1, 1e-5, False),
        of(backward, upper, x, weight, None, None, mu, rstd, True, 1e-5, mask),
        of(backward, upper, x, *empty, None, None, False, 1e-5, mask),
    ]


def _weight_norm(shape: tuple[int, ...], dim: int) -> list[Sample]:
    length = [size if d == dim else 1 for d, size in enumerate(shape)]
    v, g, upper = real(*shape), real(*length), real(*shape)
    name = "_weight_norm_interface"
    _, norms = getattr(torch.ops.aten, name)(v, g, dim)
    return [of(name, v, g, dim), of(f"{name}_backward", upper, v, g, norms, dim)]


NORM = [
    *_layer_norm((4, 6, 8), [8]),
    *_layer_norm((4, 1, 8), [8], affine=False),
    *_layer_norm((6, 2, 4), [2, 4]),
    *_group_norm((4, 12, 2, 3), 6),
    *_group_norm((2, 8, 3), 1),
    *_batch_norm((4, 6, 2, 2)),
    *_batch_norm((6, 4)),
    *_batch_norm_parts((4, 6, 2, 3)),
    *_batch_norm_parts((6, 4), affine=False),
    *_weight_norm((4, 6, 3), 2),
    *_weight_norm((4, 6, 3), 0),
]


def _attention(
    heads: tuple[int, int],
    bias: tuple[int, ...] | None = None,
    causal: bool = False,
    p: float = 0.0,
) -> list[Sample]:
    b, (n, g), (s, t), (d, e) = 4, heads, (6, 6 if causal else 4), (4, 2 if p else 4)
    q, k, v, upper = real(b, n, s, d), real(b, g, t, d), real(b, g, t, e), real(b, n, s, e)
    mask = None if bias is None else real(*bias)
    key = torch.tensor([12345, 0]) if p else None
    rest = (causal, 0.5, p, 7, full_index((b, n, s, t)) if p else (), (), ())
    out, logsumexp = OPS.attention(q, k, v, mask, key, *rest)
    saved = (upper, q, k, v, mask, key, out, logsumexp, *rest)
    samples = [
        of("plait.attention.default", q, k, v, mask, key, *rest),
        of("plait.attention_backward.default", *saved),
    ]
    if mask is not None:
        samples.append(of("plait.attention_backward_bias.default", *saved))
    return samples


def _cross_entropy() -> list[Sample]:
    logits, labels = real(6, 8), torch.tensor([1, -100, 3, 7, 0, -100])
    _, logsumexp = OPS.cross_entropy(logits, labels, -100, [])
    forward, backward = "plait.cross_entropy.default", "plait.cross_entropy_backward.default"
    return [
        of(forward, logits, labels, -100, ()),
        of(backward, real(6), logits, labels, logsumexp, -100, ()),
    ]


def _ctc() -> list[Sample]:
    x, labels = real(6, 4, 5).log_softmax(-1), torch.randint(1, 5, (4, 3))
    rest = (x, labels, torch.tensor([6, 6, 5, 6]), torch.tensor([3, 2, 1, 3]), 0, True)
    return [of("plait.ctc.default", *rest), of("plait.ctc_backward.default", real(4), *rest)]


GATE = "interleaved: mul_Tensor(add_Tensor(u, 1), mul_Tensor(g, sigmoid_default(g)))"


def _experts(n: int, k: int, e: int) -> list[Sample]:
    f, h, o = 4, 6, 8
    choice = torch.stack([torch.randperm(e)[:k] for _ in range(n)])
    weights = real(e, 2 * f, h), real(e, o, f)
    rest = (real(n, h), choice, torch.rand(n, k, dtype=F64), *weights, "silu", e, ())
    biased = *rest[:5], GATE, e, (), real(e, 2 * f)
    single = rest[0], choice, rest[2], real(e, f, h), rest[4], "single: relu_default(g)", e, ()
    return [
        of("plait.experts.default", *rest),
        of("plait.experts.default", *single),
        of("plait.experts.default", *biased),
        of("plait.experts_backward.default", real(n, o), *rest),
        of("plait.experts_backward_bias.default", real(n, o), *biased),
    ]


KEY = torch.tensor([987654321, 0])
OURS = [
    *_attention((4, 4)),
    *_attention((6, 2)),
    *_attention((8, 4), causal=True),
    *_attention((6, 1), bias=(1, 1, 6, 4)),
    *_attention((4, 2), bias=(4, 1, 1, 4)),
    *_attention((4, 2), bias=(1, 4, 6, 4)),
    *_attention((4, 2), bias=(1, 4, 1, 1), p=0.4),
    *_attention((6, 2), causal=True, p=0.3),
    of("plait.dropout.default", real(4, 6, 2), KEY, 0.4, 3, full_index((4, 6, 2))),
    of("plait.dropout.default", real(4, 1), KEY, 0.4, 3, full_index((4, 1))),
    *_cross_entropy(),
    *_experts(8, 2, 4),
    *_ctc(),
    of("plait.checked.default", real(4, 3), torch.ones(4, dtype=torch.bool), "never"),
]


def _nll(reduction: int, space: tuple[int, ...] = ()) -> list[Sample]:
    scores, labels = real(4, 6, *space).log_softmax(1), below(6, 4, *space)
    name = "nll_loss2d" if space else "nll_loss"
    weight = None if space else torch.rand(6, dtype=F64) + 0.5
    rest = (labels, weight, reduction, -100)
    out, total = getattr(torch.ops.aten, f"{name}_forward")(scores, *rest)
    upper = real(*out.shape)
    return [
        of(f"{name}_forward", scores, *rest, unused=(1,) if reduction == 0 else ()),
        of(f"{name}_backward", upper, scores, *rest, total),
    ]


def _elementwise(name: str, *rest: Any, middle: tuple[Any, ...] = ()) -> list[Sample]:
    """Forward under every reduction, backward where there is an operator for it."""
    x, y, upper = torch.rand(4, 6, dtype=F64), torch.rand(4, 6, dtype=F64), real(4, 6)
    samples = [of(name, x, y, *middle, reduction, *rest) for reduction in (0, 1, 2)]
    backward = f"{name}_backward"
    if hasattr(torch.ops.aten, backward):
        samples += [
            of(backward, real() if reduction else upper, x, y, *middle, reduction, *rest)
            for reduction in (0, 1, 2)
        ]
    return samples


ELEMENTWISE = [
    *_elementwise("mse_loss"),
    *_elementwise("smooth_l1_loss", 0.5),
    *_elementwise("huber_loss", 0.5),
    *_elementwise("soft_margin_loss"),
    *_elementwise("binary_cross_entropy", middle=(torch.rand(6, dtype=F64),)),
    *_elementwise("binary_cross_entropy_with_logits", middle=(None, torch.rand(6, dtype=F64))),
]
LOSS = [sample for reduction in (0, 1, 2) for sample in _nll(reduction)] + _nll(1, (2, 3))


def _convolution(
    x: tuple[int, ...],
    weight: tuple[int, ...],
    groups: int = 1,
    bias: bool = True,
    transposed: bool = False,
    mask: tuple[bool, bool] = (True, True),
    stride: int = 2,
    padding: int = 1,
) -> list[Sample]:
    space = len(x) - 2
    options = ([stride] * space, [padding] * space, [1] * space, transposed, [0] * space, groups)
    image, kernel = real(*x), real(*weight)
    channels = weight[1] * groups if transposed else weight[0]
    added = real(channels) if bias else None
    made = torch.ops.aten.convolution(image, kernel, added, *options)
    sizes = [channels] if bias else None
    unused = tuple(i for i, wanted in enumerate((*mask, bias)) if not wanted)
    upper = (real(*made.shape), image, kernel, sizes, *options, [*mask, bias])
    return [
        of("convolution", image, kernel, added, *options),
        of("convolution_backward", *upper, unused=unused),
    ]


CONVOLUTION = [
    *_convolution((4, 6, 5, 5), (8, 6, 3, 3)),
    *_convolution((4, 6, 5, 5), (8, 6, 3, 3), bias=False),
    *_convolution((2, 4, 7), (6, 4, 3), bias=False, mask=(False, True)),
    *_convolution((2, 12, 5), (24, 3, 3), groups=4, bias=False),
    *_convolution((2, 6, 5, 5), (6, 1, 3, 3), groups=6),
    # windows that tile the input, and windows of one place
    *_convolution((4, 6, 8, 12), (8, 6, 2, 2), bias=False, padding=0),
    *_convolution((4, 6, 6), (8, 3, 1), groups=2, bias=False, stride=1, padding=0),
    *_convolution((2, 6, 5), (6, 4, 3), transposed=True),
    *_convolution((2, 6, 5), (6, 4, 3), transposed=True, groups=2, bias=False),
]


LAYERS = [*NORM, *OURS, *LOSS, *ELEMENTWISE, *CONVOLUTION]
