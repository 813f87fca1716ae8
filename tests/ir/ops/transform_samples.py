"""Samples of transforms of whole dims, of windows and resampling, of recurrence and random numbers."""

from __future__ import annotations

import torch

from plait.ir.capture.operators.shard_offsets import full_index
from plait.tests.ir.ops.drawn import below, of, real
from plait.tests.ir.ops.shards import Sample


def imaginary(*shape: int) -> torch.Tensor:
    return torch.complex(real(*shape), real(*shape))


def positive(*shape: int) -> torch.Tensor:
    """Symmetric positive matrices."""
    half = real(*shape)
    return half @ half.mT + shape[-1] * torch.eye(shape[-1], dtype=half.dtype)


COMPLEX = [
    of("view_as_complex", real(4, 6, 2)),
    of("view_as_real", imaginary(4, 6)),
    of("_conj", imaginary(4, 6)),
    of("_conj_physical", imaginary(4, 6)),
    of("conj_physical", imaginary(4, 6)),
    of("resolve_conj", imaginary(4, 6)),
    of("resolve_neg", real(4, 6)),
    of("_neg_view", real(4, 6)),
    of("real", imaginary(4, 6)),
    of("imag", imaginary(4, 6)),
    of("angle", imaginary(4, 6)),
    of("complex", real(4, 6), real(4, 6)),
    of("polar", real(4, 6), real(4, 6)),
    of("mul.Tensor", imaginary(4, 6), imaginary(6)),
    of("sum.dim_IntList", imaginary(4, 6), [0]),
    of("_fft_c2c", imaginary(4, 6, 8), [1], 0, True),
    of("_fft_c2c", imaginary(4, 6, 8), [0, 2], 1, False),
    of("_fft_r2c", real(4, 6, 8), [2], 0, True),
    of("_fft_r2c", real(4, 6, 8), [1, 2], 2, False),
    of("_fft_c2r", imaginary(4, 6, 5), [2], 2, 8),
]
MATRICES = [
    of("linalg_cholesky_ex", positive(4, 3, 3)),
    of("linalg_inv_ex", positive(4, 3, 3)),
    of("linalg_solve_triangular", positive(4, 3, 3), real(4, 3, 2), upper=True),
    of("linalg_lu_factor_ex", positive(4, 3, 3)),
    of("linalg_lu_solve", *torch.linalg.lu_factor(positive(4, 3, 3)), real(4, 3, 2)),
    of("linalg_qr", real(4, 3, 3)),
    of("linalg_pinv", real(4, 3, 2), 1e-15),
    of("linalg_matrix_exp", real(4, 3, 3)),
    of("_linalg_eigh", positive(4, 3, 3)),
    of("_linalg_svd", positive(4, 3, 3)),
    of("_linalg_det", positive(4, 3, 3)),
    of("_linalg_slogdet", positive(4, 3, 3)),
    of("_linalg_solve_ex", positive(4, 3, 3), real(4, 3, 2)),
    of("cholesky_inverse", torch.linalg.cholesky(positive(4, 3, 3))),
    of("cholesky_solve", real(4, 3, 2), torch.linalg.cholesky(positive(4, 3, 3))),
    of("triangular_solve", real(4, 3, 2), positive(4, 3, 3)),
    of("lu_unpack", *torch.linalg.lu_factor(positive(4, 3, 3))),
    of("_cdist_forward", real(2, 4, 3), real(2, 6, 3), 2.0, None),
    of("_euclidean_dist", real(4, 3), real(6, 3)),
    of(
        "_cdist_backward",
        real(2, 4, 6),
        (near := real(2, 4, 3)),
        (far := real(2, 6, 3)),
        2.0,
        torch.cdist(near, far),
    ),
]
_SPACE = {1: (2, 4, 6), 2: (2, 4, 6, 6), 3: (2, 4, 3, 3, 3)}


def _resampled(name: str, space: int, *rest: object) -> list[Sample]:
    """Forward to twice the size, and backward."""
    shape = _SPACE[space]
    twice = [2 * size for size in shape[2:]]
    upper = real(*shape[:2], *twice)
    return [
        of(name, real(*shape), twice, *rest),
        of(f"{name}_backward", upper, twice, shape, *rest),
    ]


def _padded(name: str, space: int) -> list[Sample]:
    x, widths = real(*_SPACE[space]), [1] * (2 * space)
    upper = real(*x.shape[:2], *(size + 2 for size in x.shape[2:]))
    return [of(name, x, widths), of(f"{name}_backward", upper, x, widths)]


def _largest(space: int) -> list[Sample]:
    x = real(*_SPACE[space])
    name = f"adaptive_max_pool{space}d"
    pooled, places = getattr(torch.ops.aten, name)(x, [2] * space)
    return [of(name, x, [2] * space), of(f"{name}_backward", real(*pooled.shape), x, places)]


def _max_pool3d() -> Sample:
    x = real(2, 4, 4, 4, 4)
    _, places = torch.ops.aten.max_pool3d_with_indices(x, [2, 2, 2])
    rest = ([2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], False)
    return of("max_pool3d_with_indices_backward", real(2, 4, 2, 2, 2), x, *rest, places)


SPACE = [
    *(s for n in (1, 2, 3) for s in _resampled(f"upsample_nearest{n}d", n)),
    *(s for n in (1, 2, 3) for s in _resampled(f"_upsample_nearest_exact{n}d", n)),
    *_resampled("upsample_linear1d", 1, False),
    *_resampled("upsample_trilinear3d", 3, True),
    *_resampled("_upsample_bilinear2d_aa", 2, False),
    *_resampled("_upsample_bicubic2d_aa", 2, False),
    *(s for n in (1, 2, 3) for s in _padded(f"reflection_pad{n}d", n)),
    *(s for n in (1, 2, 3) for s in _padded(f"replication_pad{n}d", n)),
    *(s for n in (2, 3) for s in _largest(n)),
    _max_pool3d(),
    of("_adaptive_avg_pool3d", real(2, 4, 4, 4, 4), [2, 2, 2]),
    of("_adaptive_avg_pool3d_backward", real(2, 4, 2, 2, 2), real(2, 4, 4, 4, 4)),
    of("pixel_shuffle", real(2, 8, 3, 3), 2),
    of("pixel_unshuffle", real(2, 2, 6, 6), 2),
    of("channel_shuffle", real(2, 8, 3, 3), 2),
    of("im2col", real(4, 2, 5, 5), [3, 3], [1, 1], [1, 1], [1, 1]),
    of("col2im", real(4, 18, 25), [5, 5], [3, 3], [1, 1], [1, 1], [1, 1]),
    of("unfold", real(4, 8, 6), 1, 4, 2),
    of("unfold_backward", real(4, 3, 6, 4), [4, 8, 6], 1, 4, 2),
    of("grid_sampler_2d", real(2, 4, 5, 5), real(2, 6, 4, 2).tanh(), 0, 0, False),
    of(
        "grid_sampler_2d_backward",
        *(real(2, 4, 6, 4), real(2, 4, 5, 5), real(2, 6, 4, 2).tanh(), 0, 0, False, [True, True]),
    ),
    of("grid_sampler_3d", real(2, 4, 3, 3, 3), real(2, 6, 4, 2, 3).tanh(), 0, 0, False),
    of(
        "grid_sampler_3d_backward",
        *(real(2, 4, 6, 4, 2), real(2, 4, 3, 3, 3), real(2, 6, 4, 2, 3).tanh()),
        *(0, 0, False, [True, True]),
    ),
    of("affine_grid_generator", real(4, 2, 3), [4, 3, 5, 6], False),
    of("scatter_reduce.two", real(6, 4), 0, below(6, 8, 4), real(8, 4), "amax"),
    of("unsafe_split.Tensor", real(4, 18), 6, 1),
    of("unsafe_split_with_sizes", real(4, 20), [12, 4, 4], -1),
    of("norm.ScalarOpt_dim", real(4, 6), 2, [1], True),
    of("norm.Scalar", real(4, 6), 2),
    of("median.dim", real(4, 6), 1),
    of("median", real(4, 6)),
    of("nanmedian.dim", real(4, 6), 1),
]


def _layer(kind: str, gates: int, biased: bool, packed: bool = False) -> list[Sample]:
    x, h, c, size = real(3, 4, 5), real(4, 6), real(4, 6), gates * 6
    biases = (real(size), real(size)) if biased else (None, None)
    lengths = torch.tensor([3, 1, 2, 3]) if packed else None
    rest = (x, h, c, real(size, 5), real(size, 6), *biases, lengths, kind, True)
    unused = () if biased else (5, 6)
    return [
        of("plait.recurrence.default", *rest),
        of(
            "plait.recurrence_backward.default",
            *(real(3, 4, 6), real(4, 6), real(4, 6), *rest),
            unused=unused,
        ),
    ]


RECURRENCE = [
    *_layer("lstm", 4, True),
    *_layer("lstm", 4, True, packed=True),
    *_layer("gru", 3, False),
    *_layer("rnn_tanh", 1, True),
]
_KEY = torch.tensor([123456789, 0])
RANDOM = [
    of("plait.uniform.default", _KEY, 3, list(full_index((4, 6))), [4, 6], torch.float64),
    of("plait.uniform.default", _KEY, 0, list(full_index((8, 1, 6))), [8, 1, 6], torch.float32),
]
TRANSFORMS = [*COMPLEX, *MATRICES, *SPACE, *RECURRENCE, *RANDOM]
