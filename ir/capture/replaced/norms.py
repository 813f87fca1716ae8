"""Batch norms whose running statistics are means over all steps (`momentum=None`).

Their factor is one over the number of steps, which torch reads as a number of Python.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm


def batch_norm(original: Callable[..., Tensor], module: BatchNorm, x: Tensor) -> Tensor:
    """What the module gives; x: [n c ...]. Its buffers move by a factor that is a tensor."""
    steps = module.num_batches_tracked
    if module.momentum is not None or not module.training or steps is None:
        return original(module, x)
    over = [dim for dim in range(x.dim()) if dim != 1]
    with torch.no_grad():
        steps.add_(1)
        statistics = (module.running_mean, x.mean(over)), (module.running_var, x.var(over))
        for running, of_batch in statistics:
            assert running is not None
            running.add_((of_batch - running) / steps)  # 1 / steps alone is of float32
    return functional.batch_norm(x, None, None, module.weight, module.bias, True, 0.0, module.eps)
