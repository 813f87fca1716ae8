"""Encoding, packing and their inverses in plain torch; every backend must give the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

from ....ir.compression.message_format import MessageFormat
from ....ir.compression.stage import Quantize, Stat

ZERO_BELOW = 2.0**-100  # a group whose largest |x| is below it is a group of zeros


def fold(x: Tensor) -> Tensor:
    """Sum over the last dimension, a power of two, by adding its halves until one is left."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x[..., 0]


def statistic(stat: Stat, x: Tensor) -> Tensor:
    """One number per `stat.group` elements of `x` (`[…, tile]`): `[…, tile / group]`."""
    groups = x.view(*x.shape[:-1], -1, stat.group)
    if stat.kind == "absmax":
        return groups.abs().amax(-1)
    if stat.kind == "l1":
        return fold(groups.abs()) * (1 / stat.group)
    return root(fold(groups * groups) * (1 / stat.group))


def root(x: Tensor) -> Tensor:
    """Correctly rounded, which torch's square root of fp32 is not everywhere."""
    return x.to(torch.float64).sqrt().to(torch.float32)


def steps(message_format: MessageFormat, measured: Tensor) -> tuple[Tensor, Tensor]:
    """Scale of a code of one, and its inverse, from a group's statistic."""
    if message_format.codes == "sign":
        return measured, torch.ones_like(measured)
    largest = torch.full_like(measured, message_format.largest)
    zero = measured < ZERO_BELOW
    scale = torch.where(zero, 1.0, measured / largest)
    return scale, torch.where(zero, 0.0, largest / measured)


def encode(
    quantize: Quantize, message_format: MessageFormat, x: Tensor, noise: Tensor | None
) -> Tensor:
    """Codes (int64, without sign extension) of `x`, which is in units of a code."""
    if message_format.sign_bits:
        return (x < 0).to(torch.int64)
    if message_format.codes == "sign":
        return (x > 0).to(torch.int64) - (x < 0).to(torch.int64) & 3
    if message_format.codes == "e4m3":
        return encode_e4m3(x)
    if noise is None:
        rounded = x.round()
    else:
        rounded = (x + noise).floor().clamp(-message_format.largest, message_format.largest)
    return rounded.nan_to_num().to(torch.int64) & (1 << quantize.bits) - 1


def decode(message_format: MessageFormat, codes: Tensor) -> Tensor:
    """Values of codes, in units of a code, in fp32."""
    if message_format.sign_bits:
        return 1.0 - 2.0 * codes.to(torch.float32)
    if message_format.codes == "e4m3":
        return decode_e4m3(codes)
    half = 1 << message_format.bits - 1
    return ((codes ^ half) - half).to(torch.float32)


def encode_e4m3(x: Tensor) -> Tensor:
    """Sign, 4 bits of exponent, 3 of fraction; rounded to nearest even, subnormal below 2^-6."""
    bits = x.contiguous().view(torch.int32).to(torch.int64)
    magnitude = bits & 0x7FFFFFFF
    rounded = magnitude + 0x7FFFF + (magnitude >> 20 & 1)
    normal = (rounded >> 20) - (120 << 3)
    subnormal = (x.abs() * 512.0).round().nan_to_num(0, 0, 0).clamp(max=8).to(torch.int64)
    return (bits >> 24 & 0x80) | torch.where(x.abs() < 2.0**-6, subnormal, normal.clamp(0, 127))


def decode_e4m3(codes: Tensor) -> Tensor:
    magnitude = codes & 0x7F
    normal = (magnitude + (120 << 3) << 20).to(torch.int32).view(torch.float32)
    value = torch.where(magnitude < 8, magnitude.to(torch.float32) * 2.0**-9, normal)
    return torch.where(codes >= 0x80, -value, value)


def pack(message_format: MessageFormat, codes: Tensor) -> Tensor:
    """Bytes of `codes` (whole tiles of a message each): `[rows, elements]` to `[rows, bytes]`."""
    planes = codes.view(codes.shape[0], -1, 32 // message_format.bits, message_format.words)
    shifts = torch.arange(0, 32, message_format.bits, device=codes.device).view(-1, 1)
    words = (planes << shifts).sum(2).to(torch.int32)
    return words.view(codes.shape[0], -1).view(torch.uint8)


def unpack(message_format: MessageFormat, message: Tensor) -> Tensor:
    """Codes (int64) of packed bytes: `[rows, bytes]` to `[rows, elements]`."""
    words = message.contiguous().view(torch.int32).to(torch.int64)
    shifts = torch.arange(0, 32, message_format.bits, device=message.device).view(-1, 1)
    planes = (
        words.view(words.shape[0], -1, 1, message_format.words) >> shifts
        & (1 << message_format.bits) - 1
    )
    return planes.reshape(words.shape[0], -1)
