"""Forward and backward graph of a function under a memory action, and the storage of each value."""

from __future__ import annotations

from collections.abc import Iterable

from ...ir.analysis.liveness import is_view, storage_roots
from ...ir.lowering.forward_backward import partition
from ...ir.lowering.split_backward import split_backward
from ...ir.model.model import Function, Op
from ...ir.plan.memory_action import Variant


class CallStorage:
    """Forward and backward graphs of a function under a memory variant.

    `full` has the inputs and outputs of a call; it differs from `function`, one chunk, where the
    call runs in chunks. `offloaded`: saved values are offloaded to host memory. `gathered_bytes`:
    bytes of parameters gathered while the call runs. `splits`: `backward` is the part for inputs, and
    `weights` runs later. `forward_roots` and `backward_roots`: per
    value, the value whose storage it shares, in forward and in backward.
    """

    def __init__(
        self,
        function: Function,
        variant: Variant,
        full: Function | None = None,
        offloaded: bool = False,
        gathered_bytes: int = 0,
        splits: bool = False,
    ) -> None:
        self.function, self.full = function, full or function
        self.offloaded, self.gathered_bytes = offloaded, gathered_bytes
        self.forward: tuple[Op, ...] = function.forward_ops
        self.backward: tuple[Op, ...] = ()
        self.weights: tuple[Op, ...] = ()
        self.saved: tuple[int, ...] = ()
        if function.differentiable:
            halves = partition(function, variant)
            self.forward, self.backward, self.saved = halves.forward, halves.backward, halves.saved
            if splits:
                parts = split_backward(function, halves)
                self.backward, self.weights = parts.inputs, parts.weights
        self.forward_roots = _roots(function, self.forward)
        self.backward_roots = _roots(function, (*self.backward, *self.weights))

    @property
    def is_chunked(self) -> bool:
        return self.full is not self.function

    def is_sliced(self, value: int, full: int) -> bool:
        """Whether a chunk has only a slice of a value of the call."""
        return self.function.types[value] != self.full.types[full]


def _roots(function: Function, ops: Iterable[Op]) -> list[int]:
    """Per value, the value whose storage it shares."""
    views = (op for op in ops if is_view(op, function.types))
    return storage_roots(len(function.types), views)
