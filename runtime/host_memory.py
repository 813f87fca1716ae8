"""Copies in the memory of a device's host, where other tensors wait, or are stepped.

On a GPU they are pinned, so that copies need not wait for each other; the host reads them once the
stream that fills them has ended. Where the device is the host they are apart from its tensors: nothing
counts them as the device's.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor


def host_copy(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of a tensor in the memory of a device's host, of another element type if one is given; from
    a GPU it may still be in progress on the current stream."""
    dtype = dtype or x.dtype
    if x.is_sparse:
        return x.to("cpu", dtype)
    if device.type == "cuda":
        return torch.empty(x.shape, dtype=dtype, pin_memory=True).copy_(x, non_blocking=True)
    memory = np.empty(prod(x.shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(memory).view(dtype).view(x.shape).copy_(x)  # type: ignore[no-any-return]


def wait_for_copies(device: torch.device) -> None:
    """Wait for copies between a device and its host that the current stream does."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
