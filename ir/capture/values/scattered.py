"""Rows written to the places of a mask, sample by sample: the features of pictures among words.

Which row goes where depends on all places before it, in other samples too. Every sample is taken to have
as many places as its share of the rows, which the program checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..locate import current_user_line
from ..operators.checked import OPS

MESSAGE = (
    "every sample must have {count} places for the rows that are written here, so that samples can be "
    "computed apart; pad or group the samples of a batch"
)


def masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor | None:
    """`x.masked_scatter(mask, source)`; None where the rows cannot be dealt out to the samples."""
    samples = x.shape[0] if x.dim() > 1 else 0
    if samples == 0 or source.numel() % samples or mask.dim() > x.dim():
        return None
    mask = mask.expand_as(x)
    count, width = source.numel() // samples, x.shape[-1]
    if mask.stride(-1) != 0 or count % width:
        width = 1
    places = (mask[..., 0] if width > 1 else mask).reshape(samples, -1)
    before, rows = x.reshape(samples, -1, width), source.reshape(samples, -1, width)
    order = (places.to(torch.int64).cumsum(1) - 1).clamp(0, rows.shape[1] - 1)
    taken = rows.gather(1, order[..., None].expand(-1, -1, width))
    written = torch.where(places[..., None], taken.to(x.dtype), before)
    message = f"{current_user_line()}: {MESSAGE.format(count=rows.shape[1])}"
    return OPS.checked(written, places.sum(1) == rows.shape[1], message).reshape(x.shape)
