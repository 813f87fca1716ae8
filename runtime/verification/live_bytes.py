"""Counts the bytes of live tensors while a program runs, to compare with a predicted peak.

Every operator's results are followed from birth to the death of their storage, and those of operators
that ours are made of: what an allocator would be asked for, on any device, without rounding.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...ir.capture.operators.elementary import KERNELS
from ..torch_private import TorchDispatchMode, returns_alias, storage_id, tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is entered: `bytes` of live storages that were made under it, `peak` the most so far,
    and `peaks` the most in every `phase` that it is told of.

    `known` tensors count from the start. Before there is a new peak, threads that have ended a
    collective get `patience_seconds` to let go of its tensors.
    """

    def __init__(self, known: Iterable[Tensor] = (), patience_seconds: float = 0.0) -> None:
        super().__init__()
        self.bytes, self.phase, self.patience_seconds = 0, "", patience_seconds
        self.peaks: dict[str, int] = {}
        self.live: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.follow(known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kernel = KERNELS.get(func.name().partition(".")[0])
        with contextlib.nullcontext() if kernel is None else self:
            results = (kernel or func)(*args, **(kwargs or {}))
        if not returns_alias(func):
            self.follow(leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor))
        return results

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Count these storages until they die."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage_id(storage), storage.nbytes()
            if key not in self.live:
                self.live[key] = weakref.ref(storage, lambda _, k=key, n=size: self.end(k, n))  # type: ignore[misc]
                self.bytes += size
                if self.bytes > self.peaks.get(self.phase, 0):
                    time.sleep(self.patience_seconds)
                    self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.bytes)

    def end(self, key: int, size: int) -> None:
        """Stop counting a storage that died."""
        del self.live[key]
        self.bytes -= size

    @property
    def peak(self) -> int:
        return max(self.peaks.values(), default=0)

    def restart(self) -> None:
        """Forget the peaks so far."""
        self.peaks = {self.phase: self.bytes}
